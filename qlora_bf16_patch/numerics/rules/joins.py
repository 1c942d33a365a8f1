"""Autocast refuses to join a half precision that is not its own, unless something in float32 stands before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..dtypes import HALF, autocast_is_on
from .operands import found, operand, replaced


def join(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = operand(args, kwargs, 0, "tensors")
    tensors = [*tensors] if isinstance(tensors, (list, tuple)) else []
    device = tensors[0].device.type if tensors and isinstance(tensors[0], torch.Tensor) else "cpu"
    if autocast_is_on(device):
        own = torch.get_autocast_dtype(device)
        unusual = (t.dtype for t in tensors if t.dtype in (torch.float32, *HALF) and t.dtype != own)
        other = next(unusual, torch.float32)
        if other != torch.float32 and mode.may_cast(func, "tensor", other, own):
            joined = [t.to(own) if t.dtype == other else t for t in tensors]
            args, kwargs = replaced(args, kwargs, 0, "tensors", joined)
    return func(*args, **kwargs)


RULES: dict[Any, Any] = dict.fromkeys(
    (function for name in ("cat", "concat", "concatenate", "stack") for function in found(name)), join
)
