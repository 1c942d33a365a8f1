"""k-bit layers of bitsandbytes, 64 by 64, and what they are given."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from . import devices  # isort: skip  # before torch

import bitsandbytes as bnb
import torch
from torch import nn

from . import cpu  # noqa: F401

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FLOATING, HALF = [F32, BF16, F16], [BF16, F16]
SIZE = 64

# What torch says when dtypes do not fit.
MISMATCH = re.compile(
    r"same dtype|should be the same|scalar type|mixed dtype|dtypes? (to )?match|to match query dtype|dtype mismatch"
    r"|dtypes? to be equal|different dtypes?|but got:? \S*(float|bfloat16|half)|ScalarType",
    re.IGNORECASE,
)


def kbit(
    bits: int, compute_dtype: torch.dtype = BF16, bias: bool | torch.dtype = True, **options: Any
) -> bnb.nn.Linear4bit | bnb.nn.Linear8bitLt:
    """A quantized linear layer, with a bias in float32, in another dtype, or without one."""
    with devices.on_cpu():
        if bits == 4:
            options = {"compute_dtype": compute_dtype, "quant_type": "nf4", **options}
            layer = bnb.nn.Linear4bit(SIZE, SIZE, bias=bool(bias), **options)
        else:
            layer = bnb.nn.Linear8bitLt(SIZE, SIZE, bias=bool(bias), has_fp16_weights=False, **options)
    layer = layer.to(devices.TYPE)
    if isinstance(bias, torch.dtype):
        layer.bias.data = layer.bias.data.to(bias)
    return layer


def linear4bit(compute_dtype: torch.dtype = BF16, bias: bool | torch.dtype = True) -> bnb.nn.Linear4bit:
    """Of 4 bits, the same one at each call."""
    torch.manual_seed(0)
    return kbit(4, compute_dtype, bias)


def hidden_states(dtype: torch.dtype = F32) -> torch.Tensor:
    """Three tokens of two sequences, the same at each call."""
    with devices.on_cpu():
        x = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
    return x.to(devices.TYPE)


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """What a training step in ``dtype`` runs in; autocast knows half precisions alone."""
    return torch.autocast(devices.TYPE, dtype=dtype) if dtype in HALF else contextlib.nullcontext()


def flattened(module: nn.Module, name: str) -> nn.Module:
    """The module with a parameter as a plain attribute, as FSDP leaves its view into a flat parameter."""
    value = getattr(module, name).data
    del module._parameters[name]
    setattr(module, name, value)
    return module


def short(dtype: torch.dtype) -> str:
    """The dtype's name."""
    return str(dtype).removeprefix("torch.")
