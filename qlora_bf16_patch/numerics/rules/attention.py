"""Attention of query, key, value, mask and weights in different floating dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, cast, first
from .operands import Args, Kwargs, operand
from .rule import Dtypes, Rule, Tensors, activations, mixed_outside_autocast

_F = nn.functional
_NAMES = ("query", "key", "value", "attn_mask")


def _differ(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Torch takes all of them under autocast, and a mask of booleans or of float32 with every query."""
    query, key, value, mask = (operand(args, kwargs, at, name) for at, name in enumerate(_NAMES))
    if query.is_meta or autocast_is_on(query.device.type):
        return False
    masks = (torch.bool, torch.float32, query.dtype)
    return not query.dtype == key.dtype == value.dtype or (mask is not None and mask.dtype not in masks)


def _halves(func: Any, operands: Tensors) -> Dtypes:
    query, key, value, *_ = operands
    common = first((tensor.dtype for tensor in (value, key, query) if tensor.dtype in HALF), query.dtype)
    return common, query.dtype


def _mask_apart(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    """A mask's least number stays one: a cast would make -inf of that of a wider dtype, and NaN of a row of them.

    Torch lets a float32 mask stand beside any query, but cuDNN takes its bytes for the query's dtype (pytorch#191612,
    seen with torch 2.11 on an H200), and the memory-efficient kernel refuses it.
    """
    result = cast(dtype, value)
    if at not in (3, "attn_mask") or result is value:
        return result
    limits = torch.finfo(dtype)
    return torch.where(value.isinf(), result, result.clamp(limits.min, limits.max))


def _projected(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """By query, key, value and the weights alone; of biases and a mask torch takes some, by the path that it goes."""
    places = ((0, "query"), (1, "key"), (2, "value"), (5, "in_proj_weight"), (11, "out_proj_weight"))
    return mixed_outside_autocast(func, [operand(args, kwargs, at, name) for at, name in places], {})


RULES: dict[Any, Rule] = {
    _F.scaled_dot_product_attention: Rule(_differ, _halves, _mask_apart),
    _F.multi_head_attention_forward: Rule(_projected, activations),
}
