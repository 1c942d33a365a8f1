"""float32's minimum, made for a mask in float32, does not fit what is in half precision: its own limit does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..dtypes import HALF
from .operands import found


def fill(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if not args or not isinstance(args[0], torch.Tensor) or args[0].dtype not in HALF:
        return func(*args, **kwargs)
    dtype = args[0].dtype
    overflows = any(_overflows(value, dtype) for value in (*args, *kwargs.values()))
    if not overflows or not mode.may_cast(func, "value", torch.float32, dtype):
        return func(*args, **kwargs)
    return func(*(_limited(a, dtype) for a in args), **{name: _limited(value, dtype) for name, value in kwargs.items()})


def _overflows(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, float) and torch.finfo(dtype).max < abs(value) < math.inf


def _limited(value: Any, dtype: torch.dtype) -> Any:
    return math.copysign(torch.finfo(dtype).max, value) if _overflows(value, dtype) else value


RULES: dict[Any, Any] = dict.fromkeys(
    (function for name in ("masked_fill", "masked_fill_", "pad") for function in found(name)), fill
)
