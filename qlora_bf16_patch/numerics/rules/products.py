"""Products of matrices and attention, computed in a parameter's dtype, else in a half precision, as by autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, cast, first, floating
from .rule import (
    Args,
    Dtypes,
    Kwargs,
    Rule,
    Tensors,
    activations,
    autocast_is_on_a_gpu,
    cast_on_gpus,
    device_of,
    found,
    mixed,
    mixed_outside_autocast,
    not_autocasts,
    operand,
    promoted_on_gpus,
)

_F = nn.functional
_T = torch.Tensor
_ATTENTION = ("query", "key", "value", "attn_mask")


def _added(func: Any, operands: Tensors) -> Dtypes:
    """The first operand is added to the product."""
    return activations(func, operands)[0], activations(func, operands[1:])[1]


def _added_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """CUDA casts the addend by itself (seen with torch 2.11 on an H200)."""
    if device_of(args, kwargs) != "cpu":  # pragma: no cover: on a GPU
        return cast_on_gpus(func, [operand(args, kwargs, at, name) for at, name in ((1, "mat"), (2, "vec"))], {})
    return cast_on_gpus(func, args, kwargs)


def _of_vectors(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """A product with a single number promotes."""
    return promoted_on_gpus(func, args, kwargs) and all(tensor.dim() for tensor in floating((*args, *kwargs.values())))


def _contracts(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether an einsum is a matrix product; an elementwise one promotes, and so does a sum over a size of one."""
    equation, *operands = args
    inputs, arrow, output = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    summed = set(inputs) - set(output) - {","}
    if not mixed_outside_autocast(func, args, kwargs):
        return False
    if not arrow or "..." in inputs or not all(isinstance(operand, torch.Tensor) for operand in operands):
        return not arrow or bool(summed)
    sizes = zip(inputs.replace(",", ""), (size for operand in operands for size in operand.shape), strict=False)
    return any(size > 1 for letter, size in sizes if letter in summed)


def _bilinear(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """CUDA's autocast asks its factors alone, and not its bias."""
    factors = [operand(args, kwargs, at, name) for at, name in enumerate(("input1", "input2", "weight"))]
    return mixed(func, args, kwargs) and (not autocast_is_on_a_gpu(args, kwargs) or not_autocasts(func, factors, {}))


def _differ(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Torch takes all of them under autocast, and a mask of booleans or of float32 with every query."""
    query, key, value, mask = (operand(args, kwargs, at, name) for at, name in enumerate(_ATTENTION))
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


# What autocast casts by itself (measured on torch 2.13.0), and what it leaves alone; of sums, the first is the addend.
LINEAR = {_F.linear}
_CAST = {*found("matmul", "mm", "bmm", "vecdot"), _T.__matmul__, _T.__rmatmul__}
_CAST_ON_GPUS, _PROMOTED_ON_GPUS = {*found("mv", "multi_dot", "chain_matmul")}, {*found("dot", "vdot", "tensordot")}
_LEFT = {*found("_grouped_mm", "grouped_mm")}
_SUMS_CAST, _SUMS_CAST_ON_GPUS = {*found("addmm", "addbmm", "baddbmm")}, {*found("addmv")}
PRODUCTS: set[Any] = {*_CAST, *_CAST_ON_GPUS, *_PROMOTED_ON_GPUS, *_LEFT, *_SUMS_CAST, *_SUMS_CAST_ON_GPUS}
PRODUCTS |= {*found("bilinear", "inner", "addr"), torch.einsum}
RULES: dict[Any, Rule] = {
    **dict.fromkeys((*LINEAR, *_CAST), Rule(mixed_outside_autocast, activations)),
    **dict.fromkeys(_CAST_ON_GPUS, Rule(cast_on_gpus, activations)),
    **dict.fromkeys(_PROMOTED_ON_GPUS, Rule(promoted_on_gpus, activations)),
    **dict.fromkeys(_LEFT, Rule(mixed, activations)),
    **dict.fromkeys(_SUMS_CAST, Rule(mixed_outside_autocast, _added)),
    **dict.fromkeys(_SUMS_CAST_ON_GPUS, Rule(_added_on_gpus, _added)),
    **dict.fromkeys(found("bilinear"), Rule(_bilinear, activations)),
    **dict.fromkeys(found("inner"), Rule(_of_vectors, activations)),
    **dict.fromkeys(found("addr"), Rule(dtypes=_added)),
    torch.einsum: Rule(_contracts, activations),
    _F.scaled_dot_product_attention: Rule(_differ, _halves, _mask_apart),
    _F.multi_head_attention_forward: Rule(_projected, activations),
}
