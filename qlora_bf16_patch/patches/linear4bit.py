"""``bitsandbytes.linear4bit``: the configured compute dtype rules, the bias is never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


def _load() -> Factory:
    import dis
    import functools

    import torch
    from bitsandbytes.autograd._functions import matmul_4bit

    from ..dtypes import HALF, bias_of, held, refuse_integers, stand_in

    # bitsandbytes 0.48 and 0.49 write the input's dtype to the quant state on CPU, and it goes into the state dict.
    steps = dis.get_instructions(matmul_4bit)
    overwrites = any(step.opname == "STORE_ATTR" and step.argval == "dtype" for step in steps)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        # From 0.49 on a layer in evaluation repacks its weight for CPUs with AVX512-bf16, which rounds the
        # quantization's scales to bfloat16 for good and has no gradient (_convert_weight_packed_for_cpu).
        repacks = "support_avx512bf16_for_cpu" in original.__code__.co_names

        def untouched(layer: Any, dtype: torch.dtype) -> Any:
            """The layer, or a stand-in where upstream's forward would write to a parameter."""
            attributes = bias_of(layer, dtype)
            if repacks and layer.support_avx512bf16_for_cpu:
                attributes["support_avx512bf16_for_cpu"] = False
            return stand_in(layer, **attributes) if attributes else layer

        def computed(layer: Any, x: torch.Tensor) -> torch.Tensor:
            refuse_integers(layer, x)
            if not layer.compute_type_is_set:
                # bitsandbytes < 0.47 replaces a configured compute dtype by the first input's (bitsandbytes#1623).
                if layer.compute_dtype is None:
                    layer.set_compute_type(x)
                layer.compute_type_is_set = True
            dtype = layer.compute_dtype or x.dtype
            if dtype == torch.float32 and x.dtype in HALF and not torch.compiler.is_compiling():
                installation.note(
                    "compute_dtype",
                    f"4-bit layers compute in float32 though they are given {x.dtype} hidden states: "
                    "BitsAndBytesConfig's default. Set bnb_4bit_compute_dtype=torch.bfloat16 if you did not mean that.",
                )
            state: Any = getattr(layer.weight, "quant_state", None)
            dequantized = getattr(state, "dtype", None)
            # Cast here, since upstream before 0.50 compares the bias with the input as it was given.
            result = original(untouched(layer, dtype), x.to(dtype)).to(x.dtype)
            if overwrites and state is not None and state.dtype != dequantized:
                state.dtype = dequantized
            return result  # type: ignore[no-any-return]

        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            if installation.on:
                given, dtype, bias = x.dtype, self.compute_dtype, held(self, "bias")
                # Upstream's own casts do where there is no bias to write to, and no other dtype to tell of.
                fits = (given is dtype and (bias is None or bias.dtype is dtype)) or (
                    bias is None and dtype in HALF and x.is_floating_point()
                )
                writes = overwrites or (repacks and self.support_avx512bf16_for_cpu and not x.is_cuda)
                if not fits or writes or not self.compute_type_is_set:
                    return computed(self, x)
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
