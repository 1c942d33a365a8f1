"""``bitsandbytes.linear4bit``: the configured compute dtype rules, the bias is never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


def _load() -> Factory:
    import functools

    import bitsandbytes
    from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module

    def with_cast_bias(layer: Any, x: torch.Tensor) -> torch.Tensor:
        # Upstream's forward with one difference: every release up to 0.50.2 writes `bias.data = bias.data.to(x.dtype)`,
        # which rounds a trained bias for good. Here the bias is cast for this call alone.
        fix_4bit_weight_quant_state_from_module(layer)
        dtype = layer.compute_dtype or x.dtype
        result: torch.Tensor = bitsandbytes.matmul_4bit(
            x.to(dtype), layer.weight.t(), bias=layer.bias.to(dtype), quant_state=layer.weight.quant_state
        )
        return result.to(x.dtype)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            if not installation.on:
                return original(self, x)  # type: ignore[no-any-return]
            if not x.dtype.is_floating_point:
                raise TypeError(
                    f"{type(self).__name__} was given a {x.dtype} tensor of shape {tuple(x.shape)}: its caller cast "
                    "the activations to the weight's storage dtype, which destroys them. Cast to the layer's "
                    f"compute_dtype ({self.compute_dtype}) instead."
                )
            if not self.compute_type_is_set:
                # bitsandbytes < 0.47 replaces a configured compute dtype by the first input's (bitsandbytes#1623).
                if self.compute_dtype is None:
                    self.set_compute_type(x)
                self.compute_type_is_set = True
            if self.bias is not None and self.bias.dtype != (self.compute_dtype or x.dtype):
                return with_cast_bias(self, x)
            return original(self, x)  # type: ignore[no-any-return]

        return forward

    return factory


PATCH = Patch(
    name="bitsandbytes.linear4bit",
    module="bitsandbytes.nn.modules",
    attribute="Linear4bit.forward",
    load=_load,
    summary="4-bit layers compute in their configured dtype, give back the input's, and never write to the bias",
    distribution="bitsandbytes",
    requires=">=0.43",
    reports=("bitsandbytes-foundation/bitsandbytes#1623", "bitsandbytes-foundation/bitsandbytes#1662"),
)
