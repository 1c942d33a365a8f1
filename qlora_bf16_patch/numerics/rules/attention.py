"""Attention of query, key, value, mask and weights in different floating dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, cast, first, floating
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
    """Torch takes a float32 mask with any query; a cast to float16 would turn a bfloat16 minimum into -inf."""
    if at not in (3, "attn_mask"):
        return cast(dtype, value)
    return value if any(tensor.dtype == dtype for tensor in floating([value])) else cast(torch.float32, value)


def _projected(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """By query, key, value and the weights alone; of biases and a mask torch takes some, by the path that it goes."""
    places = ((0, "query"), (1, "key"), (2, "value"), (5, "in_proj_weight"), (11, "out_proj_weight"))
    return mixed_outside_autocast(func, [operand(args, kwargs, at, name) for at, name in places], {})


RULES: dict[Any, Rule] = {
    _F.scaled_dot_product_attention: Rule(_differ, _halves, _mask_apart),
    _F.multi_head_attention_forward: Rule(_projected, activations),
}
