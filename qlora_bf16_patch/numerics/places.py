"""Where in a model an operation stands. Python's frames are read, but only where torch would refuse an operation."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

_CALL = torch.nn.Module._call_impl.__code__


def modules_around() -> Iterator[torch.nn.Module]:
    """The modules whose forwards are running in this thread, the innermost first."""
    frame = sys._getframe(1)
    last = None
    while frame is not None:
        # A forward may be called by itself: BaseTuner.forward of PEFT calls `self.model.forward`.
        if frame.f_code is _CALL or frame.f_code.co_name == "forward":
            module = frame.f_locals.get("self")
            if module is not last and isinstance(module, torch.nn.Module):
                last = module
                yield module
        frame = frame.f_back  # type: ignore[assignment]


def path_of(module: torch.nn.Module, root: torch.nn.Module) -> str:
    """The module's path in ``root``; its class where it is not in there, or is ``root`` itself."""
    found = (path for path, other in root.named_modules() if other is module)
    return next(found, "") or type(module).__name__
