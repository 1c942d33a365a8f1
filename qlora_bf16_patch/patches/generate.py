"""``transformers.generate``: generation of a k-bit model runs under autocast in its compute dtype. Off by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


def _load() -> Factory:
    import functools

    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    from ..dtypes import HALF

    def compute_dtype(model: Any) -> torch.dtype | None:
        """What the model's 4-bit layers compute in, or an 8-bit model's own dtype; None where that is no half."""
        for module in model.modules():
            if isinstance(module, Linear4bit) and module.compute_dtype in HALF:
                return module.compute_dtype  # type: ignore[no-any-return]
            if isinstance(module, Linear8bitLt):
                loaded = getattr(model.config, "dtype", None) or getattr(model.config, "torch_dtype", None)
                return loaded if loaded in HALF else None
        return None

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            device = self.device.type
            dtype = compute_dtype(self) if installation.on and not torch.is_autocast_enabled(device) else None
            if dtype is None:
                return original(self, *args, **kwargs)
            with torch.autocast(device, dtype=dtype):
                return original(self, *args, **kwargs)

        return generate

    return factory


PATCH = Patch(
    name="transformers.generate",
    module="transformers.generation.utils",
    # A PEFT model's and a tuner's generate end in the base model's, which is this one.
    attribute="GenerationMixin.generate",
    load=_load,
    summary="generate() of a k-bit model runs under autocast in its compute dtype: every operation as in training",
    distribution="transformers",
    requires=">=4.30",
    default=False,
    reports=("huggingface/peft#1515",),
)
