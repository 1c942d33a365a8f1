"""``*.autocast_output``: under autocast a k-bit layer gives back autocast's dtype, as ``nn.Linear`` does.

Off by default, since it changes training: it is for code that calls flash-attention itself, which takes half precisions
alone, and stands on the layers' other patches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..engine.binding import bind
from ..engine.installation import Bound, Installation
from ..numerics.dtypes import autocast_is_on
from ..watching.events import computed, listeners
from .injection import after_injection
from .tuners import other_tuners


def forward(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over a layer's ``forward``."""

    @functools.wraps(original)
    def patched(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _followed(installation, self, x, original(self, x, *args, **kwargs))

    return patched


def inject_adapter(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``BaseTuner.inject_adapter``, for the layers of PEFT's other methods."""
    return after_injection(original, installation, take_in)


def take_in(model: torch.nn.Module, installation: Installation) -> None:
    """Give each tuner layer of ``model`` whose base layer is quantized its forward."""
    for module in other_tuners(model, installation):
        bind(InAutocast(installation, module))


class InAutocast(Bound):
    """The forward of a tuner layer, whose result follows autocast."""

    def __call__(self, /, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _followed(self.installation, self.instance(), x, self.original(x, *args, **kwargs))


def _followed(installation: Installation, layer: Any, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    device = x.device.type
    if not installation.on or not autocast_is_on(device):
        return result
    dtype = torch.get_autocast_dtype(device)
    if not torch.compiler.is_compiling() and listeners:
        computed(installation, layer, "result", result.dtype, dtype)
    return result.to(dtype)
