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

    from ..dtypes import HALF, stand_in
    from ..modes import ComputeIn

    def adapters_round(layer: Any, compute_dtype: torch.dtype) -> bool:
        """Whether an active adapter is in a half precision that is not the compute dtype.

        Upstream casts the input to each adapter's dtype in turn, and the next adapter sees it rounded.
        """
        adapters = (layer.lora_A[name] for name in layer.active_adapters if name in layer.lora_A)
        dtypes = {getattr(getattr(adapter, "weight", None), "dtype", compute_dtype) for adapter in adapters}
        return any(dtype in HALF and dtype != compute_dtype for dtype in dtypes)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not installation.on or not x.dtype.is_floating_point:
                return original(self, x, *args, **kwargs)  # type: ignore[no-any-return]
            device = x.device.type
            compute_dtype = getattr(self.get_base_layer(), "compute_dtype", None) or x.dtype
            autocast = torch.is_autocast_enabled(device)
            if (compute_dtype in HALF or autocast) and not adapters_round(self, compute_dtype):
                layer = self
            else:
                layer = stand_in(self, cast_input_dtype_enabled=False)  # what is cast below is cast once
            if autocast:
                result = original(layer, x, *args, **kwargs)
            elif compute_dtype in HALF:
                # The very region that a training step runs in, so generation computes what training computed.
                with torch.autocast(device, dtype=compute_dtype):
                    result = original(layer, x, *args, **kwargs)
            else:
                with ComputeIn(compute_dtype):  # autocast knows half precisions alone
                    result = original(layer, x, *args, **kwargs)
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
