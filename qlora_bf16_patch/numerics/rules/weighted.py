"""Operations with a weight: the input is cast to it, and the result back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import autocast_is_on, cast, floating, mixed_is_allowed
from .operands import found, operand, replaced

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


def batch_norm(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Statistics may have another dtype than the weights, too: PEFT's preparation casts parameters and leaves buffers.

    They are updated in their own dtype.
    """
    mean, var = (operand(args, kwargs, at, name) for at, name in enumerate(_STATISTICS, start=1))
    weight = operand(args, kwargs, 3, "weight")
    if mean is None or weight is None or mean.dtype == weight.dtype:
        return weighted("batch_norm", 3, mode, func, args, kwargs)
    if not mode.may_cast(func, "running statistics", mean.dtype, weight.dtype):
        return func(*args, **kwargs)
    updated = [value.to(weight.dtype) for value in (mean, var)]
    for at, name in enumerate(_STATISTICS, start=1):
        args, kwargs = replaced(args, kwargs, at, name, updated[at - 1])
    result = weighted("batch_norm", 3, mode, func, args, kwargs)
    if operand(args, kwargs, 5, "training"):
        with torch.no_grad():
            mean.copy_(updated[0])
            var.copy_(updated[1])
    return result


def multi_head_attention(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One call of torch's, whose inner products no function mode sees: query, key and value are cast to its weights."""
    tensors = [operand(args, kwargs, at, name) for at, name in enumerate(_ATTENDED)]
    weight = operand(args, kwargs, 5, "in_proj_weight")
    weight = kwargs.get("q_proj_weight") if weight is None else weight
    if weight is None or autocast_is_on(weight.device.type) or all(t.dtype == weight.dtype for t in tensors):
        return func(*args, **kwargs)
    given = next(tensor.dtype for tensor in tensors if tensor.dtype != weight.dtype)
    if not mode.may_cast(func, "query", given, weight.dtype):
        return func(*args, **kwargs)
    for at, name in enumerate(_ATTENDED):
        args, kwargs = replaced(args, kwargs, at, name, tensors[at].to(weight.dtype))
    output, *weights = func(*args, **kwargs)
    return (output.to(tensors[0].dtype), *weights)


_STATISTICS, _ATTENDED = ("running_mean", "running_var"), ("query", "key", "value")
_CONVOLUTIONS = [
    function for n in (1, 2, 3) for name in ("conv", "conv_transpose") for function in found(f"{name}{n}d")
]
RULES: dict[Any, Any] = {
    **dict.fromkeys((_F.linear, *_CONVOLUTIONS, *found("prelu")), functools.partial(weighted, "product", 1)),
    _F.layer_norm: functools.partial(weighted, "norm", 2),
    _F.group_norm: functools.partial(weighted, "norm", 2),
    _F.batch_norm: batch_norm,
    _F.multi_head_attention_forward: multi_head_attention,
}
