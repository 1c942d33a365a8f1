"""Products of matrices: computed in a parameter's dtype, else in the half precision, as autocast would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, cast, floating
from .operands import found

_T = torch.Tensor
LINEAR = {nn.functional.linear}
# What autocast casts by itself (measured on torch 2.13.0), and the products that it leaves alone.
_AUTOCAST: set[Any] = {_T.__matmul__, _T.__rmatmul__, torch.einsum}
for _name in ("matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "vecdot"):
    _AUTOCAST.update(found(_name))
PRODUCTS: set[Any] = set(_AUTOCAST)
for _name in ("mv", "dot", "vdot", "inner", "addmv", "addr", "tensordot", "multi_dot", "bilinear"):
    PRODUCTS.update(found(_name))
for _name in ("_grouped_mm", "grouped_mm"):
    PRODUCTS.update(found(_name))
# Their first operand is added to the product.
_ADDED: set[Any] = {function for name in ("addmm", "addbmm", "baddbmm", "addmv", "addr") for function in found(name)}


def product(mode: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result has the dtype of the activations: of the first operand that is no parameter."""
    operands = [*floating((*args, *kwargs.values()))]
    dtypes = dict.fromkeys(tensor.dtype for tensor in operands)
    if len(dtypes) < 2 or (func in _AUTOCAST and autocast_is_on(operands[0].device.type)):
        return func(*args, **kwargs)
    if func is torch.einsum and not _contracts(*args):
        return func(*args, **kwargs)
    parameter = next((tensor for tensor in operands if isinstance(tensor, nn.Parameter)), None)
    if parameter is not None:
        dtype = parameter.dtype
    else:
        dtype = next((half for half in HALF if half in dtypes), torch.float32)
    factors = operands[1:] if func in _ADDED else operands
    given = next((t.dtype for t in factors if not isinstance(t, nn.Parameter)), factors[0].dtype)
    other = next(another for another in dtypes if another != dtype)
    if not mode.may_cast(func, "operand", other, dtype):
        return func(*args, **kwargs)
    result = func(*(cast(dtype, a) for a in args), **{name: cast(dtype, value) for name, value in kwargs.items()})
    return result.to(given)


def _contracts(equation: Any, *operands: Any) -> bool:
    """Whether an einsum is a matrix product; an elementwise one promotes, and so does a sum over a size of one."""
    inputs, arrow, output = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    summed = set(inputs) - set(output) - {","}
    if not arrow or "..." in inputs or not all(isinstance(operand, torch.Tensor) for operand in operands):
        return not arrow or bool(summed)
    sizes = zip(inputs.replace(",", ""), (size for operand in operands for size in operand.shape), strict=False)
    return any(size > 1 for letter, size in sizes if letter in summed)


RULES: dict[Any, Any] = dict.fromkeys(PRODUCTS, product)
