"""Operations that write a source into a tensor: the source takes the tensor's dtype."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .operands import found, operand, replaced

_T = torch.Tensor


def write(at: int, name: str, mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``at`` and ``name`` say where the source stands."""
    target, source = operand(args, kwargs, 0, "input"), operand(args, kwargs, at, name)
    if isinstance(target, torch.Tensor) and isinstance(source, torch.Tensor) and _refuses(func, args):
        mixed = target.dtype != source.dtype and target.is_floating_point() and source.is_floating_point()
        if mixed and mode.may_cast(func, name, source.dtype, target.dtype):
            args, kwargs = replaced(args, kwargs, at, name, source.to(target.dtype))
    return func(*args, **kwargs)


def _refuses(func: Any, args: Sequence[Any]) -> bool:
    """``x[index] = source`` with slices alone is a copy, which casts by itself."""
    if func is not _T.__setitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(item, (torch.Tensor, list)) for item in index)


RULES: dict[Any, Any] = {_T.__setitem__: functools.partial(write, 2, "source")}
for _names, _at, _source in (
    (("lerp", "lerp_"), 1, "end"),
    (("index_put", "index_put_"), 2, "values"),
    (("masked_scatter", "masked_scatter_"), 2, "source"),
    (("index_add", "index_add_", "index_copy", "index_copy_"), 3, "source"),
    (("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"), 3, "src"),
):
    for _name in _names:
        RULES.update(dict.fromkeys(found(_name), functools.partial(write, _at, _source)))
