"""``bitsandbytes.linear4bit``: the configured compute dtype rules, and nothing is written to.

Where upstream's forward runs, its bits come out, in training and under autocast as well: the casts are its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..engine.installation import Installation, upstream
from ..hosts import bitsandbytes as host
from ..numerics.dtypes import HALF
from ..watching.events import computed, listeners


def forward(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``Linear4bit.forward``: a layer whose dtypes agree goes straight to it."""
    repacks = host.repacks_weights(upstream(original))

    @functools.wraps(original)
    def patched(self: Any, x: torch.Tensor) -> Any:
        if installation.on:
            given, dtype, own = x.dtype, self.compute_dtype, self._parameters
            bias = own["bias"] if "bias" in own else host.bias_of(self)
            # Upstream's own casts do where there is no bias to write to, and no other dtype to tell of.
            fits = (given is dtype and (bias is None or bias.dtype is dtype)) or (
                bias is None and dtype in HALF and x.is_floating_point()
            )
            writes = host.OVERWRITES_QUANT_STATE or (repacks and self.support_avx512bf16_for_cpu)
            if not fits or (writes and not x.is_cuda) or not self.compute_type_is_set:
                return _computed(original, installation, self, x, repacks)
        return original(self, x)

    return patched


def _computed(original: Any, installation: Installation, layer: Any, x: torch.Tensor, repacks: bool) -> torch.Tensor:
    x = host.activations(layer, x)
    if not layer.compute_type_is_set:
        # bitsandbytes < 0.47 replaces a configured compute dtype by the first input's (bitsandbytes#1623).
        if layer.compute_dtype is None:
            layer.set_compute_type(x)
        layer.compute_type_is_set = True
    dtype = layer.compute_dtype or x.dtype
    warn_of_float32(installation, layer, x.dtype)
    state: Any = getattr(layer.weight, "quant_state", None)
    dequantized = getattr(state, "dtype", dtype)
    overwrites = dequantized is not dtype and host.overwrites_quant_state(x)
    compiling = torch.compiler.is_compiling()  # Dynamo makes no tensor with attributes of its own
    bias_in = dtype if host.CASTS_FIRST else x.dtype
    written = dtype if overwrites and not compiling else None
    untouched = host.untouched(layer, bias_in, repacks=repacks, dequantized=written)
    if not compiling and listeners:
        tell_bias(installation, layer, untouched)
    result: torch.Tensor = original(untouched, x)
    if overwrites and compiling:  # pragma: no cover: Dynamo traces it
        state.dtype = dequantized
    return result


def tell_bias(installation: Installation, layer: Any, untouched: Any) -> None:
    """Tell who listens of a bias that is cast for this call alone."""
    before, after = host.bias_of(layer), host.bias_of(untouched)
    if before is not None and after is not None:
        computed(installation, layer, "bias", before.dtype, after.dtype)


def warn_of_float32(installation: Installation, layer: Any, given: torch.dtype | None = None) -> None:
    """Tell once of a compute dtype that was left at float32."""
    if layer.compute_dtype is torch.float32 and not torch.compiler.is_compiling():
        text = host.left_at_float32(layer, given)
        if text:
            installation.note("compute_dtype", text)
