"""Where in a model an operation stands. Python's frames are read, but only where torch has refused an operation.

Only frames of torch's ``nn.Module.__call__`` and of our own forwards are looked into. A look into another frame would
keep its local variables alive, also those that it deletes (``frame.f_locals`` up to Python 3.12).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch

_CALL = torch.nn.Module._call_impl.__code__
_forwards: set[CodeType] = set()


def is_forward(call: Any) -> Any:
    """Decorate the ``__call__`` of a class of ours that stands at ``forward`` of a module."""
    _forwards.add(call.__code__)
    return call


def is_forwards(code: CodeType) -> bool:
    """Whether it is the code of a forward of ours."""
    return code in _forwards


def module_of(frame: FrameType) -> torch.nn.Module | None:
    """The module that a frame is a call of."""
    if frame.f_code is _CALL:
        return frame.f_locals.get("self")
    # A forward may be called by itself: BaseTuner.forward of PEFT calls `self.model.forward`.
    forward = forward_of(frame)
    return None if forward is None else forward.instance()


def forward_of(frame: FrameType) -> Any:
    """Our forward that a frame runs, if it does."""
    return frame.f_locals.get("self") if frame.f_code in _forwards else None


def frames(start: int = 2) -> Iterator[FrameType]:
    """The frames of this thread, the innermost first."""
    frame: FrameType | None = sys._getframe(start)
    while frame is not None:
        yield frame
        frame = frame.f_back


def modules_around() -> Iterator[torch.nn.Module]:
    """The modules whose calls are running in this thread, the innermost first."""
    last = None
    for frame in frames():
        module = module_of(frame)
        if module is not None and module is not last:
            last = module
            yield module


def path_of(module: torch.nn.Module, root: torch.nn.Module) -> str:
    """The module's path in ``root``; its class where it is not in there, or is ``root`` itself."""
    found = (path for path, other in root.named_modules() if other is module)
    return next(found, "") or type(module).__name__
