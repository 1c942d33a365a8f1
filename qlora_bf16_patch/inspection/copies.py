"""What a trace puts into a module stays out of the module's copies and pickles.

A copied hook would never be taken out, a copied ``generate`` would run the model that was copied, and neither can be
pickled.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..numerics.compiling import leave_uncompiled

# copy and pickle look for it in the object itself (Lib/copy.py, Lib/pickle.py of Python 3.10 to 3.14)
_REDUCE = "__reduce_ex__"


class Hook:
    """A forward hook of a trace."""

    def __init__(self, function: Callable[..., None]) -> None:
        _leave_hooks_uncompiled()
        self.function = function

    def __call__(self, *args: Any) -> None:
        self.function(*args)


@functools.cache
def _leave_hooks_uncompiled() -> None:
    leave_uncompiled(Hook.__call__.__code__)


class Generate:
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
        self.module, self.own, self.around = module, own, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.around():
            return self._current()(*args, **kwargs)

    def _current(self) -> Any:
        """Looked up at each call, since ``transformers.generate`` patches the class when it is switched on."""
        if self.own is not None:
            return self.own
        try:
            found = inspect.getattr_static(type(self.module), "generate")
        except AttributeError:  # PEFT's tuners give what their model has
            return self.module.__getattr__("generate")
        return found.__get__(self.module, type(self.module)) if hasattr(found, "__get__") else found


def keep_out_of_copies(module: torch.nn.Module) -> Callable[[], None]:
    """From now on copies and pickles of ``module`` have no :class:`Hook` and no :class:`Generate`.

    Returns:
        What takes that back.
    """
    own = module.__dict__.get(_REDUCE)
    module.__dict__[_REDUCE] = functools.partial(_reduced, module, own)
    return functools.partial(_put_back, module, own)


def _put_back(module: torch.nn.Module, own: Any) -> None:
    if own is None:
        module.__dict__.pop(_REDUCE, None)
    else:
        module.__dict__[_REDUCE] = own


def _reduced(module: torch.nn.Module, own: Any, protocol: int) -> Any:
    reduction = own(protocol) if own is not None else type(module).__reduce_ex__(module, protocol)
    if not isinstance(reduction, tuple) or len(reduction) < 3:
        return reduction
    function, args, state, *rest = reduction
    if isinstance(state, tuple) and state and isinstance(state[0], dict):  # of a class with __slots__
        state = (_clean(state[0], own), *state[1:])
    elif isinstance(state, dict):
        state = _clean(state, own)
    return (function, args, state, *rest)


def _clean(state: dict[str, Any], own: Any) -> dict[str, Any]:
    state = dict(state)
    state.pop(_REDUCE, None)
    if own is not None:
        state[_REDUCE] = own
    ours = set()
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        ours |= {number for number, hook in state.get(name, {}).items() if isinstance(hook, Hook)}
    for name, value in state.items():
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            state[name] = type(value)((number, hook) for number, hook in value.items() if number not in ours)
    generate = state.get("generate")
    if isinstance(generate, Generate):
        state["generate"] = generate.own
        if generate.own is None:
            del state["generate"]
    return state
