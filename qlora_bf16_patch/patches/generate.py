"""``transformers.generate``: generation of a k-bit model runs under autocast in its compute dtype. Off by default."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..engine.installation import Installation
from ..hosts.bitsandbytes import is_4bit, is_kbit
from ..numerics.dtypes import HALF


def generate(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``GenerationMixin.generate``."""

    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = self.device.type
        dtype = _compute_dtype(self) if installation.on and not torch.is_autocast_enabled(device) else None
        if dtype is None:
            return original(self, *args, **kwargs)
        with torch.autocast(device, dtype=dtype):
            return original(self, *args, **kwargs)

    return patched


def _compute_dtype(model: Any) -> torch.dtype | None:
    """What the model's 4-bit layers compute in, or an 8-bit model's own dtype; None where that is no half."""
    for module in model.modules():
        if is_4bit(module) and module.compute_dtype in HALF:
            return module.compute_dtype  # type: ignore[no-any-return]
        if is_kbit(module) and not is_4bit(module):
            loaded = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None)
            return loaded if loaded in HALF else None
    return None
