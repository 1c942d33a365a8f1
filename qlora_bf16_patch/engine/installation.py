"""What one patch has put in place, and how it is taken out again."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from . import binding, wrapping
from .binding import Bound, Function, call_shadowed
from .patch import Factory
from .wrapping import LOCK, Layer, Target, upstream

__all__ = ["Bound", "Installation", "Target", "call_shadowed", "upstream"]

logger = logging.getLogger("qlora_bf16_patch")
_numbers = itertools.count()


class Installation:
    """The wrappers and bindings of one patch.

    They read ``on`` at every call: code that torch has compiled and methods that accelerate has bound keep a wrapper
    after the class attribute is restored, and only a flag reaches them. It is an object's plain attribute, so Dynamo
    guards on it and recompiles.

    Args:
        name: of the patch. On one object only one installation of a name is bound.
        strict: see below.

    Attributes:
        name: of the patch.
        on: whether the wrappers do anything.
        strict: whether a wrapper raises where it would have cast (``QLORA_BF16_PATCH_STRICT``).
        notes: what the wrappers noticed and the status tells, key to text.
        reporters: functions without arguments, which return sentences for the status. A factory may run again: it adds
            each of them once.
        targets: what is to be wrapped, once it was found.
        placed: whether everything is in place, and was not restored since.
        layers: wrappers that are in place, perhaps beneath another library's.
        bound: objects that have a forward of the patch, each with that.
        unbound: objects whose forward was taken out, each with that.

    Examples:
        >>> from qlora_bf16_patch.engine.installation import Installation
        >>> installation = Installation("llama.norms")
        >>> installation.on, installation.strict
        (False, False)
    """

    def __init__(self, name: str = "", strict: bool = False) -> None:
        self.name = name or f"installation {next(_numbers)}"
        self.on = False
        self.strict = strict
        self.notes: dict[str, str] = {}
        self.reporters: list[Callable[[], Iterable[str]]] = []
        self.layers: list[Layer] = []
        self.targets: tuple[Target, ...] = ()
        self.placed = False
        self.bound: weakref.WeakKeyDictionary[Any, Bound] = weakref.WeakKeyDictionary()
        self.unbound: weakref.WeakKeyDictionary[Any, Bound] = weakref.WeakKeyDictionary()

    @property
    def known(self) -> bool:
        """Whether the targets were found, be they wrapped now or restored."""
        return bool(self.targets)

    def note(self, key: str, text: str, level: int = logging.WARNING) -> None:
        """Tell something once, in the log and from then on in the status.

        Args:
            key: what is told once.
            text: a sentence.
            level: of the log.

        Examples:
            >>> from qlora_bf16_patch.engine.installation import Installation
            >>> installation = Installation("llama.norms")
            >>> installation.note("eps", "a norm has eps=0")
            >>> installation.note("eps", "another norm has eps=0")
            >>> installation.told()
            ('a norm has eps=0',)
        """
        with LOCK:
            new = key not in self.notes
            self.notes.setdefault(key, text)
        if new:
            logger.log(level, "%s", text)

    def told(self) -> tuple[str, ...]:
        """All that the status tells of the patch.

        Returns:
            Its notes, and what its reporters say now.

        Examples:
            >>> from qlora_bf16_patch.engine.installation import Installation
            >>> installation = Installation("llama.norms")
            >>> installation.reporters.append(lambda: ["2 norms"])
            >>> installation.told()
            ('2 norms',)
        """
        with LOCK:
            notes, reporters = list(self.notes.values()), list(self.reporters)
        reported = [sentence for report in reporters for sentence in report()]
        return tuple(dict.fromkeys([*notes, *reported]))

    def wrap(self, owner: Any, attribute: str, factory: Factory) -> None:
        """Put a plain function over ``owner.attribute``, on top of other wrappers, once.

        Args:
            owner: a class or module.
            attribute: the name of the function in it; it may be inherited.
            factory: ``factory(original, installation)`` returns the wrapper. It is called again if the wrapper was
                taken out, or if another library has replaced the function.

        Raises:
            Unsupported: there is no such function with Python code, or the factory refuses it.

        Examples:
            >>> from qlora_bf16_patch.engine.installation import Installation
            >>> installation = Installation("llama.norms")
            >>> installation.wrap(type(norm), "forward", keeps_dtype)
            >>> norm(hidden_states).dtype
            torch.float32
            >>> installation.on = True
            >>> norm(hidden_states).dtype
            torch.bfloat16
            >>> installation.restore()
            True
        """
        others = [target for target in self.targets if target[:2] != (owner, attribute)]
        self.install([*others, Target(owner, attribute, factory)])

    def install(self, targets: Iterable[Target], wanted: Callable[[], bool] = lambda: True) -> bool:
        """Wrap all targets or none, and bind again what was taken out; from now on these are the targets.

        The factories run without a lock, and again if somebody has changed a target meanwhile.

        Args:
            targets: those of the patch.
            wanted: asked under the lock, before anything is changed.

        Returns:
            False if it was not wanted any more.
        """
        targets = tuple(targets)
        while True:
            planned = [wrapping.plan(target, self.layers, self) for target in dict.fromkeys(targets)]
            with LOCK:
                if not wanted():
                    return False
                new = wrapping.commit(planned)
                if new is not None:
                    self.layers += new
                    self.targets, self.placed = targets, True
                    for bound in list(self.unbound.values()):
                        binding.bind(bound)
                    return True

    def bind(self, instance: Any, function: Callable[..., Any]) -> None:
        """Shadow the forward of one object, once. The object is not kept alive.

        Args:
            instance: must be hashable by identity and weakly referable, as modules are.
            function: a plain function, whose first argument is the object; it calls what it shadows with
                ``call_shadowed``. A second call with another function puts that in its place.

        Examples:
            >>> from qlora_bf16_patch.engine.installation import Installation, call_shadowed
            >>> installation = Installation("llama.norms")
            >>> def forward(self, hidden_states):
            ...     return call_shadowed(installation, self, hidden_states).to(hidden_states.dtype)
            >>> installation.bind(norm, forward)
            >>> norm(hidden_states).dtype
            torch.bfloat16
            >>> installation.restore()
            True
            >>> norm(hidden_states).dtype
            torch.float32
        """
        binding.bind(Function(self, instance, function))

    def rebind(self, instance: Any) -> bool:
        """Let an object whose ``_old_forward`` is a method from before its class was patched call the patched one.

        Args:
            instance: the object.

        Returns:
            Whether it was such a method. A method that our wrapper does not reach is left alone.

        Source:
            ``add_hook_to_module`` (accelerate/hooks.py), as ``device_map`` has it called while a model is loaded.

        Examples:
            >>> from accelerate.hooks import ModelHook, add_hook_to_module
            >>> hooked = add_hook_to_module(type(norm)(64), ModelHook())
            >>> from qlora_bf16_patch.engine.installation import Installation
            >>> installation = Installation("llama.norms")
            >>> installation.wrap(type(norm), "forward", keeps_dtype)
            >>> installation.on = True
            >>> hooked(hidden_states).dtype, installation.rebind(hooked), hooked(hidden_states).dtype
            (torch.float32, True, torch.bfloat16)
            >>> installation.restore()
            True
        """
        return binding.rebind(self, instance)

    def shadowed_by(self) -> str:
        """The functions that replaced ours, each as a clause; one that says that it wraps ours is left out."""
        with LOCK:
            layers = list(self.layers)
            replaced = [target for target in self.targets if not wrapping.covers(*target[:2], layers)]
        originals = [upstream(layer.function) for layer in layers]
        return "; ".join(_replacement(target, originals) for target in replaced)

    def restore(self) -> bool:
        """Flag first, then the very objects that stood there before; another party's wrapper is left alone.

        Returns:
            Whether anything was put back.

        Examples:
            >>> from qlora_bf16_patch.engine.installation import Installation
            >>> installation, original = Installation("llama.norms"), type(norm).forward
            >>> installation.wrap(type(norm), "forward", keeps_dtype)
            >>> installation.restore(), type(norm).forward is original
            (True, True)
            >>> installation.restore()
            False
        """
        with LOCK:
            self.on = self.placed = False
            unbound = [binding.unbind(self, instance) for instance in list(self.bound)]
            taken_out = [layer for layer in self.layers[::-1] if wrapping.take_out(layer)]
            self.layers = [layer for layer in self.layers if layer not in taken_out]
            return any(unbound) or bool(taken_out)


def _replacement(target: Target, originals: list[Any]) -> str:
    owner, attribute, _ = target
    found = wrapping.current(owner, attribute)
    if found is None:
        return f"{owner.__name__}.{attribute} is gone"
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", type(found).__qualname__)
    text = f"{owner.__name__}.{attribute} was replaced by {module + '.' if module else ''}{name}"
    if wrapping.reaches(found, originals):
        return text
    return f"{text}, which does not say what it wraps (if it calls the function that was there, the patch still works)"
