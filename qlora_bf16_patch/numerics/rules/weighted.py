"""Operations with a weight: the input is cast to it, and the result back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import cast, floating, mixed_is_allowed
from .operands import found, operand

_F = nn.functional


def weighted(kind: str, weight_at: int, mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``kind`` is that of :func:`..dtypes.mixed_is_allowed`."""
    x, weight = operand(args, kwargs, 0, "input"), operand(args, kwargs, weight_at, "weight")
    if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor) or not x.is_floating_point():
        return func(*args, **kwargs)
    dtype = weight.dtype
    agree = all(tensor.dtype == x.dtype for tensor in floating((*args, *kwargs.values())))
    if agree or not dtype.is_floating_point or mixed_is_allowed(kind, x, dtype):
        return func(*args, **kwargs)
    if not mode.may_cast(func, "input", x.dtype, dtype):
        return func(*args, **kwargs)
    args = [cast(dtype, value) for value in args]
    return func(*args, **{name: cast(dtype, value) for name, value in kwargs.items()}).to(x.dtype)


_CONVOLUTIONS = [
    function for n in (1, 2, 3) for name in ("conv", "conv_transpose") for function in found(f"{name}{n}d")
]
RULES: dict[Any, Any] = {
    **dict.fromkeys((_F.linear, *_CONVOLUTIONS, *found("prelu")), functools.partial(weighted, "product", 1)),
    _F.layer_norm: functools.partial(weighted, "norm", 2),
    _F.group_norm: functools.partial(weighted, "norm", 2),
    _F.batch_norm: functools.partial(weighted, "batch_norm", 3),
}
