"""What a checkpoint inside of a forward runs again in the backward, where no module's forward is around it.

transformers >= 5 checkpoints so (modeling_layers.py, GradientCheckpointingLayer), and so do users. Torch has no hook
there; but a checkpoint keeps the function that it will run, on an object that is found on the stack (torch 2.13.0,
utils/checkpoint.py). Where a release keeps it elsewhere, nothing is found, and the backward raises as unpatched.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import checkpoint as torchs

from .places import frames

Context = Callable[[], contextlib.AbstractContextManager[Any]]

_CALL = torch.nn.Module._call_impl.__code__
_REENTRANT = torchs.CheckpointFunction.forward.__code__
_NON_REENTRANT = inspect.unwrap(torchs.checkpoint).__code__


class _Within:
    """A function that runs in a context."""

    def __init__(self, function: Callable[..., Any], context: Context) -> None:
        self.function, self.context = function, context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.context():
            return self.function(*args, **kwargs)


def rerun_within(context: Context) -> None:
    """Let the checkpoints that the running module's forward has opened run again in ``context()`` in the backward."""
    for holder, name in _kept_functions():
        function = getattr(holder, name, None)
        if function is not None and not isinstance(function, _Within):
            setattr(holder, name, _Within(function, context))


def is_inside() -> bool:
    """Whether a checkpoint around the running code will run it again in the backward."""
    return any(frame.f_code in (_REENTRANT, _NON_REENTRANT) for frame in frames())


def _kept_functions() -> Iterator[tuple[Any, str]]:
    """Objects that keep the function to be run again, and the attribute."""
    for frame in frames(3):
        if frame.f_code is _CALL:
            return
        if frame.f_code is _REENTRANT:
            yield frame.f_locals.get("ctx"), "run_function"
        elif frame.f_code is _NON_REENTRANT:
            generator = getattr(frame.f_locals.get("gen"), "gi_frame", None)
            yield generator and generator.f_locals.get("new_frame"), "recompute_fn"
