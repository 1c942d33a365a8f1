"""``peft.lora.linear4bit``: the whole LoRA layer computes in its compute dtype and gives back the input's dtype."""

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

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not installation.on or not x.dtype.is_floating_point:
                return original(self, x, *args, **kwargs)  # type: ignore[no-any-return]
            device = x.device.type
            compute_dtype = getattr(self.get_base_layer(), "compute_dtype", None)
            # Autocast knows half precisions alone; a layer that computes in fp32 is upstream's as it stands.
            if torch.is_autocast_enabled(device) or compute_dtype not in (torch.bfloat16, torch.float16):
                result = original(self, x, *args, **kwargs)
            else:
                # The very region that a training step runs in, so generation computes what training computed.
                with torch.autocast(device, dtype=compute_dtype):
                    result = original(self, x, *args, **kwargs)
            return result.to(x.dtype)  # type: ignore[no-any-return]

        return forward

    return factory


PATCH = Patch(
    name="peft.lora.linear4bit",
    module="peft.tuners.lora.bnb",
    attribute="Linear4bit.forward",
    load=_load,
    summary="LoRA on 4-bit layers computes in the compute dtype, as under autocast, and gives back the input's dtype",
    distribution="peft",
    requires=">=0.6",
    reports=("huggingface/peft#1515", "huggingface/peft#1172"),
)
