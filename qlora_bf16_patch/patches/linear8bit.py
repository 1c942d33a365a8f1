"""``bitsandbytes.linear8bit``: the input's dtype comes back, the bias is never written to."""

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

    from ..dtypes import autocast_is_on, bias_of, held, refuse_integers, stand_in

    def overflows(layer: Any, x: torch.Tensor) -> bool:
        """Whether autocast would overflow the product of integers.

        Where bitsandbytes has no kernel (CPUs without AVX-512), its evaluation multiplies them as float32, and autocast
        turns that into a half precision: float16 overflows, and what comes out is garbage (backends/default/ops.py,
        _int8_linear_matmul_impl, 0.50.2). The layer's training has another path, which is meant to be autocast.
        """
        return not layer.training and not x.is_cuda and autocast_is_on(x.device.type)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            if not installation.on:
                return original(self, x)  # type: ignore[no-any-return]
            refuse_integers(self, x)
            layer, bias = self, held(self, "bias")
            if bias is not None and bias.dtype is not x.dtype:
                layer = stand_in(self, **bias_of(self, x.dtype))
            if overflows(self, x):
                with torch.autocast(x.device.type, enabled=False):
                    result = original(layer, x)
            else:
                result = original(layer, x)
            # Under autocast on CPU and XPU a layer in training gives back autocast's dtype (MatMul8bitFp).
            return result if result.dtype is x.dtype else result.to(x.dtype)  # type: ignore[no-any-return]

        return forward

    return factory


PATCH = Patch(
    name="bitsandbytes.linear8bit",
    module="bitsandbytes.nn.modules",
    attribute="Linear8bitLt.forward",
    load=_load,
    summary="8-bit layers give back the input's dtype, and never write to the bias",
    distribution="bitsandbytes",
    requires=">=0.43",
    reports=("huggingface/peft#101", "huggingface/peft#874"),
)
