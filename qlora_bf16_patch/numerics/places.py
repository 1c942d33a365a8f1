"""Where in a model an operation stands. Python's frames are read, but only where torch would refuse an operation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import torch

_CALL = torch.nn.Module._call_impl.__code__


def module_of(frame: FrameType) -> torch.nn.Module | None:
    """The module whose forward a frame is running."""
    # A forward may be called by itself: BaseTuner.forward of PEFT calls `self.model.forward`.
    if frame.f_code is _CALL or frame.f_code.co_name == "forward":
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module):
            return module
    return None


def modules_around() -> Iterator[torch.nn.Module]:
    """The modules whose forwards are running in this thread, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    last = None
    while frame is not None:
        module = module_of(frame)
        if module is not None and module is not last:
            last = module
            yield module
        frame = frame.f_back


def path_of(module: torch.nn.Module, root: torch.nn.Module) -> str:
    """The module's path in ``root``; its class where it is not in there, or is ``root`` itself."""
    found = (path for path, other in root.named_modules() if other is module)
    return next(found, "") or type(module).__name__
