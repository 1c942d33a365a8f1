"""Operations that write into a tensor or that join tensors, and others whose operands are all alike."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..dtypes import HALF
from .rule import (
    Args,
    Dtypes,
    Kwargs,
    Rule,
    Tensors,
    device_of,
    first_operand,
    found,
    joined,
    mixed,
    mixed_outside_autocast,
    not_autocasts,
    promoted_on_gpus,
)

_T = torch.Tensor


def _writes_to_an_index(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """``x[index] = source`` with slices alone is a copy, which casts by itself."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(item, (torch.Tensor, list)) for item in index) and mixed(func, (args[0], args[2]), {})


def _joins(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Autocast has a say in it on CPU alone, and without it torch joins all dtypes."""
    return device_of(args, kwargs) == "cpu" and not_autocasts(func, args, kwargs)


def _copies(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """On CPU autocast casts the operands of an ``index_copy`` as it does those of a join (torch 2.13.0)."""
    if device_of(args, kwargs) not in (None, "cpu"):  # pragma: no cover: on a GPU
        return mixed(func, args, kwargs)
    return mixed_outside_autocast(func, args, kwargs) or not_autocasts(func, args, kwargs)


def _copied(func: Any, operands: Tensors) -> Dtypes:
    return joined(func, operands)[0], operands[0].dtype


def _overflow(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """float32's minimum, made for a mask in float32, does not fit what is in half precision: its own limit does."""
    if not args or not isinstance(args[0], torch.Tensor) or args[0].dtype not in HALF:
        return False
    return any(_limited(args[0].dtype, 0, value) is not value for value in (*args, *kwargs.values()))


def _limited(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    overflows = isinstance(value, float) and torch.finfo(dtype).max < abs(value) < math.inf
    return math.copysign(torch.finfo(dtype).max, value) if overflows else value


_PROMOTED = ["index_put", "scatter_add"]  # those in place are not
_WRITES = [f"index_{name}" for name in ("add", "reduce")]
_WRITES += ["scatter", "scatter_reduce", "masked_scatter", "put"]
_IN_PLACE = [f"{name}_" for name in (*_WRITES, *_PROMOTED, "index_copy", "lerp", "addmm", "addbmm", "baddbmm", "addmv")]
_JOINS = ("hstack", "vstack", "dstack", "column_stack", "row_stack", "meshgrid", "cartesian_prod")
RULES: dict[Any, Rule] = {
    **dict.fromkeys(found(*_WRITES), Rule(mixed, first_operand)),
    **dict.fromkeys(found(*_PROMOTED), Rule(promoted_on_gpus, first_operand)),
    **dict.fromkeys(found("index_copy"), Rule(_copies, _copied)),
    **dict.fromkeys(found(*_IN_PLACE), Rule(mixed, first_operand, in_place=True)),
    _T.__setitem__: Rule(_writes_to_an_index, first_operand, in_place=True),
    **dict.fromkeys(found("lerp"), Rule(mixed)),
    **dict.fromkeys((torch.cross, _T.cross), Rule(promoted_on_gpus)),
    torch.linalg.cross: Rule(mixed),
    **dict.fromkeys(found("cat", "concat", "concatenate", "stack"), Rule(_joins, joined)),
    **dict.fromkeys(found(*_JOINS), Rule(dtypes=joined)),
    **dict.fromkeys(found("masked_fill", "pad"), Rule(_overflow, first_operand, _limited)),
    **dict.fromkeys(found("masked_fill_"), Rule(_overflow, first_operand, _limited, in_place=True)),
}
