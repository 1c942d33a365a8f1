"""``bitsandbytes.linear8bit``: the bias is never written to; outside of autocast the input's dtype comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..engine.installation import Installation
from ..hosts import bitsandbytes as host
from ..numerics.dtypes import autocast_is_on
from ..watching.events import computed, listeners
from .linear4bit import tell_bias


def forward(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``Linear8bitLt.forward``."""

    @functools.wraps(original)
    def patched(self: Any, x: torch.Tensor) -> Any:
        if not installation.on:
            return original(self, x)
        x = host.activations(self, x)
        layer = host.untouched(self, x.dtype)
        told = not torch.compiler.is_compiling() and listeners
        if told:
            tell_bias(installation, self, layer)
        if _overflows(self, x):
            with torch.autocast(x.device.type, enabled=False):
                return original(layer, x)
        result = original(layer, x)
        if result.dtype is x.dtype or torch.is_grad_enabled() or autocast_is_on(x.device.type):
            return result
        if told:
            computed(installation, self, "result", result.dtype, x.dtype)
        return result.to(x.dtype)

    return patched


def _overflows(layer: Any, x: torch.Tensor) -> bool:
    """Whether autocast would overflow the product of integers.

    Where bitsandbytes has no kernel (CPUs without AVX-512), its evaluation multiplies them as float32, and autocast
    turns that into a half precision: float16 overflows, and what comes out is garbage (backends/default/ops.py,
    _int8_linear_matmul_impl, 0.50.2). With gradients bfloat16, which does not overflow, is left as it is. The layer's
    training has another path, which is meant to be autocast.
    """
    device = x.device.type
    if layer.training or x.is_cuda or not autocast_is_on(device):
        return False
    return not torch.is_grad_enabled() or torch.get_autocast_dtype(device) == torch.float16
