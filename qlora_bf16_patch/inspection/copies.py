"""What a trace puts into a module stays out of the module's copies and pickles.

A copied hook would never be taken out, a copied ``generate`` would run the model that was copied, and neither can be
pickled.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..numerics.compiling import leave_uncompiled

# copy and pickle look for them in the object itself (Lib/copy.py, Lib/pickle.py of Python 3.10 to 3.14)
_REDUCE = "__reduce_ex__"
_DEEPCOPY = "__deepcopy__"
_lock = threading.Lock()


class _Ours:
    """In a copy of a module that is made of its ``__dict__`` it is itself, until it is taken out of there."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class Hook(_Ours):
    """A forward hook of a trace."""

    def __init__(self, function: Callable[..., None]) -> None:
        _leave_hooks_uncompiled()
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)


@functools.cache
def _leave_hooks_uncompiled() -> None:
    leave_uncompiled(Hook.__call__.__code__)


class Generate(_Ours):
    """A model's ``generate`` under a trace.

    Args:
        module: the model.
        original: its ``generate`` as it is now.
        own: what stood in the model itself, not in its class; or None.
        around: what it is called inside of.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        original: Any,
        own: Any,
        around: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        functools.update_wrapper(self, original)
        self.module, self.own, self.around = weakref.ref(module), own, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.around():
            return self._current()(*args, **kwargs)

    def _current(self) -> Any:
        """Looked up at each call, since ``transformers.generate`` patches the class when it is switched on."""
        if self.own is not None:
            return self.own
        module: Any = self.module()
        try:
            found = inspect.getattr_static(type(module), "generate")
        except AttributeError:  # PEFT's tuners give what their model has
            return module.__getattr__("generate")
        return found.__get__(module, type(module)) if hasattr(found, "__get__") else found

    def take_out_of(self, module: torch.nn.Module) -> None:
        """Put back what stood there; what others have put there meanwhile stays, and may go on to call this."""
        self.around = contextlib.nullcontext
        above: Any = module.__dict__.get("generate")
        if above is self:
            _put(module.__dict__, "generate", self.own)
        while isinstance(above, Generate):
            if above.own is self:
                above.own = self.own
            above = above.own


class _Copied(_Ours):
    """Stands for a module's own method of copying, for as long as something of ours is in the module.

    Args:
        module: the module.
        name: of the method.
    """

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        self.module, self.name, self.users = weakref.ref(module), name, 0
        self.own: Any = module.__dict__.get(name)

    def __call__(self, argument: Any) -> Any:
        module = self.module()
        copied = self.own(argument) if self.own is not None else getattr(type(module), self.name)(module, argument)
        return self._reduced(copied) if self.name == _REDUCE else self._cleaned(copied)

    def _reduced(self, reduction: Any) -> Any:
        if not isinstance(reduction, tuple) or len(reduction) < 3:
            return reduction
        function, args, state, *rest = reduction
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # of a class with __slots__
            state = (_clean(state[0]), *state[1:])
        elif isinstance(state, dict):
            state = _clean(state)
        return (function, args, state, *rest)

    def _cleaned(self, copied: Any) -> Any:
        if copied is not self.module():  # a module may say that it is its own copy
            state = copied.__dict__
            clean = _clean(state)
            state.clear()
            state.update(clean)
        return copied


def keep_out_of_copies(module: torch.nn.Module) -> Callable[[], None]:
    """From now on copies and pickles of ``module`` have no :class:`Hook` and no :class:`Generate`.

    Several may ask for it, and take it back in any order.

    Returns:
        What takes that back.
    """
    names = [_REDUCE, *([_DEEPCOPY] if hasattr(type(module), _DEEPCOPY) else [])]
    found = []
    with _lock:
        for name in names:
            there: Any = module.__dict__.get(name)
            if not isinstance(there, _Copied):
                there = module.__dict__[name] = _Copied(module, name)
            there.users += 1
            found.append(there)
    return functools.partial(_take_back, found)


def _take_back(found: list[_Copied]) -> None:
    with _lock:
        for one in found:
            one.users -= 1
            module = one.module()
            if one.users == 0 and module is not None and module.__dict__.get(one.name) is one:
                _put(module.__dict__, one.name, one.own)


def _put(state: dict[str, Any], name: str, own: Any) -> None:
    if own is None:
        state.pop(name, None)
    else:
        state[name] = own


def _clean(state: dict[str, Any]) -> dict[str, Any]:
    state = dict(state)
    ours = set()
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        ours |= {number for number, hook in state.get(name, {}).items() if isinstance(hook, Hook)}
    for name, value in state.items():
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            state[name] = type(value)((number, hook) for number, hook in value.items() if number not in ours)
    for name in (_REDUCE, _DEEPCOPY, "generate"):
        while isinstance(there := state.get(name), (_Copied, Generate)):
            _put(state, name, there.own)
    return state
