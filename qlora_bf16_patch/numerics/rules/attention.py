"""Scaled dot-product attention of query, key, value and mask in different floating dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import autocast_is_on
from .operands import operand, replaced

_NAMES = ("query", "key", "value", "attn_mask")


def attention(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result has the query's dtype."""
    query, key, value, mask = (operand(args, kwargs, at, name) for at, name in enumerate(_NAMES))
    if _taken(query, key, value, mask):
        return func(*args, **kwargs)
    # The half precision among them, in which autocast would compute.
    common = next((t.dtype for t in (value, key, query) if t.dtype != torch.float32), query.dtype)
    asked = False
    for at, tensor in enumerate((query, key, value)):
        if tensor.dtype != common:
            asked = asked or mode.may_cast(func, _NAMES[at], tensor.dtype, common)
            if not asked:
                return func(*args, **kwargs)
            args, kwargs = replaced(args, kwargs, at, _NAMES[at], tensor.to(common))
    if mask is not None and mask.is_floating_point() and mask.dtype not in (common, torch.float32):
        if not asked and not mode.may_cast(func, "attention mask", mask.dtype, torch.float32):
            return func(*args, **kwargs)
        # Torch takes a float32 mask with any query; a cast to float16 would turn a bfloat16 minimum into -inf.
        args, kwargs = replaced(args, kwargs, 3, "attn_mask", mask.to(torch.float32))
    return func(*args, **kwargs).to(query.dtype)


def _taken(query: Any, key: Any, value: Any, mask: Any) -> bool:
    """Whether torch takes them as they are: under autocast, and a mask of booleans or of float32 with every query."""
    if not all(isinstance(tensor, torch.Tensor) for tensor in (query, key, value)):
        return True
    if query.is_meta or autocast_is_on(query.device.type):
        return True
    masks = (torch.bool, torch.float32, query.dtype)
    return query.dtype == key.dtype == value.dtype and (mask is None or mask.dtype in masks)


RULES: dict[Any, Any] = {nn.functional.scaled_dot_product_attention: attention}
