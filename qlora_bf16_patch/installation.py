"""What one patch has put in place, and how it is taken out again. It imports no torch."""

from __future__ import annotations

import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import wrapt

logger = logging.getLogger("qlora_bf16_patch")

Factory = Callable[[Any, "Installation"], Callable[..., Any]]
_MISSING = object()
# accelerate calls the method that it found and keeps in `_old_forward` (hooks.py, add_hook_to_module).
_FORWARDS = ("_old_forward", "forward")
BEFORE = "_qlora_bf16_patch_before"  # on an object with a bound wrapper: what stood in its __dict__ before, if anything


class Installation:
    """The wrappers of one patch.

    Wrappers read ``on`` at every call: code that torch has compiled and methods that accelerate has bound keep the
    wrapper after the class attribute is restored, and only a flag reaches them. It is an object's plain attribute, so
    Dynamo guards on it and recompiles.

    Attributes:
        on: whether the wrappers do anything.
        strict: whether a wrapper raises where it would have cast (``QLORA_BF16_PATCH_STRICT``).
        notes: what the wrappers noticed and the status tells, key to text.
    """

    def __init__(self, strict: bool = False) -> None:
        self.on = False
        self.strict = strict
        self.notes: dict[str, str] = {}
        self._targets: dict[tuple[Any, str], Factory] = {}
        self._wrapped: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, what stood there, wrapper
        self._bound: weakref.WeakKeyDictionary[Any, Callable[..., Any]] = weakref.WeakKeyDictionary()
        self._taken_out: weakref.WeakSet[Any] = weakref.WeakSet()

    def wrap(self, owner: Any, attribute: str, factory: Factory) -> None:
        """Put a plain function over ``owner.attribute``, once.

        A ``wrapt.FunctionWrapper`` on a module's forward is bypassed by ``torch.compile`` of an outer module (measured
        on torch 2.13.0), hence ``wrap_object`` with a factory that returns a plain function.

        Args:
            owner: a class or module.
            attribute: the name of the function in it; it may be inherited.
            factory: ``factory(original, installation)`` returns the wrapper.
        """
        self._targets[owner, attribute] = factory
        current = getattr(owner, attribute)
        if any(_wraps(current, wrapper) for _, _, _, wrapper in self._wrapped):
            return  # here, beneath another wrapper, or inherited from a wrapped class
        before = vars(owner).get(attribute, _MISSING)
        wrapt.wrap_object(owner, attribute, factory, (self,))  # type: ignore[arg-type]  # typed for proxies alone
        self._wrapped.append((owner, attribute, before, vars(owner)[attribute]))

    def bind(self, instance: Any, function: Callable[..., Any]) -> None:
        """Shadow the forward of one object, once, so that the other objects of its class pay nothing.

        The object gets a bound method: ``copy.deepcopy`` binds it to the copy, and a pickle holds the method's name
        alone (``function.__name__``), so it loads without this package. The object is not kept alive.

        Args:
            instance: must be hashable by identity and weakly referable, as modules are.
            function: a plain function named ``forward``, whose first argument is the object; it calls what it shadows
                with :func:`beneath`.
        """
        if instance in self._bound and instance not in self._taken_out:
            return  # perhaps beneath another party's wrapper by now
        self._bound[instance] = function
        self._taken_out.discard(instance)
        if _bound_at(instance, function):
            return  # a deep copy brought it along
        attribute = next((name for name in _FORWARDS if name in vars(instance)), _FORWARDS[-1])
        if attribute in vars(instance):
            setattr(instance, BEFORE, vars(instance)[attribute])
        setattr(instance, attribute, types.MethodType(function, instance))

    def note(self, key: str, text: str) -> None:
        """Tell something once, as a warning in the log and from then on in the status."""
        if key not in self.notes:
            self.notes[key] = text
            logger.warning("%s", text)

    def rewrap(self) -> None:
        """Put back what :meth:`restore` took out."""
        for (owner, attribute), factory in list(self._targets.items()):
            self.wrap(owner, attribute, factory)
        for instance in list(self._taken_out):
            self.bind(instance, self._bound[instance])

    @property
    def known(self) -> bool:
        """Whether the target was found, be it wrapped now or restored."""
        return bool(self._targets)

    def shadowed_by(self) -> str | None:
        """The function that another party put in the place of ours, or None; one that wraps ours leaves it at work."""
        for owner, attribute, _, wrapper in self._wrapped:
            current = vars(owner).get(attribute)
            if not _wraps(current, wrapper):
                module = getattr(current, "__module__", None) or "?"
                name = getattr(current, "__qualname__", None) or repr(current)
                return f"{owner.__name__}.{attribute} was replaced by {module}.{name}"
        return None

    def restore(self) -> bool:
        """Flag first, then the very objects that stood there before; another party's wrapper is left alone.

        Returns:
            Whether anything was put back.
        """
        self.on = False
        for instance, function in list(self._bound.items()):
            attribute = _bound_at(instance, function)
            if attribute is None:
                continue
            self._taken_out.add(instance)
            if BEFORE in vars(instance):
                setattr(instance, attribute, vars(instance).pop(BEFORE))
            elif attribute != "forward":  # whoever moved it calls it
                setattr(instance, attribute, types.MethodType(type(instance).forward, instance))
            else:
                delattr(instance, attribute)
        kept = []
        for owner, attribute, before, wrapper in reversed(self._wrapped):
            if vars(owner).get(attribute) is not wrapper:
                kept.append((owner, attribute, before, wrapper))
            elif before is _MISSING:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, before)
        changed = len(kept) < len(self._wrapped)
        self._wrapped = kept[::-1]
        return changed


def beneath(instance: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the forward that :meth:`Installation.bind` has shadowed: another party's, else the class'."""
    before = instance.__dict__.get(BEFORE)
    return type(instance).forward(instance, *args, **kwargs) if before is None else before(*args, **kwargs)


def _wraps(function: Any, wrapped: Any) -> bool:
    while function is not None and function is not wrapped:
        function = getattr(function, "__wrapped__", None)
    return function is wrapped


def _bound_at(instance: Any, function: Callable[..., Any]) -> str | None:
    """The attribute in which :meth:`Installation.bind` has put ``function``, or accelerate has moved it to."""
    found = (name for name, value in vars(instance).items() if getattr(value, "__func__", None) is function)
    return next(found, None)
