"""Function modes that mend single operations, wherever inside a module they stand. Torch alone; no patch is known here.

A mode sees every call of torch's Python API in its block. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .dtypes import HALF, autocast_is_on, floating, mixed_is_allowed

_NOTHING = contextlib.nullcontext()
# Told of each cast: the dtype of an operand, and the one that it is cast to.
Cast = Callable[[torch.dtype, torch.dtype], None]


class Fitted(TorchFunctionMode):
    """Inside it, an operation that torch refuses for its operands' dtypes has them cast, and its result cast back.

    Operations that torch takes run as they are, so where nothing would have raised the bits stay the same.

    Args:
        dtype: dtype of the surrounding module's weights: products of activations and weights are computed in it. None
            where it has none: they are computed in the half precision among the operands, as autocast would.
        cast: told of each cast, and free to raise.
        storage: also keep right what a model does with a 4-bit weight as if it were a matrix: activations are not
            cast to the integers in which it is stored, and it is dequantized before it is clamped.
    """

    def __init__(self, dtype: torch.dtype | None, cast: Cast, storage: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.cast = cast
        self.storage = storage

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None and kwargs.get("out") is None:
            return rule(self, func, args, kwargs)
        if self.storage and func in _STORAGE:
            return _STORAGE[func](func, args, kwargs)
        return func(*args, **kwargs)


class ComputeIn(TorchFunctionMode):
    """Autocast for a dtype that torch's knows none for: matrix products are computed in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS or func is nn.functional.linear:
            args = [_to(self.dtype, value) for value in args]
            kwargs = {name: _to(self.dtype, value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


class _Autocast:
    """``torch.autocast(device, dtype=dtype, cache_enabled=False)`` where none is on, at a third of its cost.

    Measured on torch 2.13.0: 8 µs against 2.5, of a layer's 100 to 200 at batch 1. Casts of weights are not kept: in
    another region, of another device or switched off, they would outlive this one, and an optimizer's step.
    """

    __slots__ = ("cache_before", "device", "dtype", "dtype_before")

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def __enter__(self) -> None:
        self.dtype_before = torch.get_autocast_dtype(self.device)
        torch.set_autocast_dtype(self.device, self.dtype)
        torch.set_autocast_enabled(self.device, True)
        self.cache_before = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *exception: object) -> None:
        torch.set_autocast_cache_enabled(self.cache_before)
        torch.set_autocast_enabled(self.device, False)
        torch.set_autocast_dtype(self.device, self.dtype_before)


def region(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """What a training step in ``dtype`` runs in, for a layer outside of one; nothing where autocast is on already."""
    if device == "meta" or torch.is_autocast_enabled(device):
        return _NOTHING
    if dtype not in HALF:
        return ComputeIn(dtype)
    if torch.compiler.is_compiling():
        return torch.autocast(device, dtype=dtype, cache_enabled=False)
    return _Autocast(device, dtype)


def _to(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, (list, tuple)):
        return [_to(dtype, item) for item in value]
    return value


def _weighted(kind: str, weight_at: int) -> Any:
    """A rule for operations with a weight: the input is cast to it, and the result back."""

    def rule(mode: Fitted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        x = args[0] if args else kwargs.get("input")
        weight = args[weight_at] if len(args) > weight_at else kwargs.get("weight")
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor) or not x.is_floating_point():
            return func(*args, **kwargs)
        dtype = weight.dtype
        agree = all(tensor.dtype == x.dtype for tensor in floating((*args, *kwargs.values())))
        if agree or not dtype.is_floating_point or mixed_is_allowed(kind, x, dtype):
            return func(*args, **kwargs)
        mode.cast(x.dtype, dtype)
        args = [_to(dtype, value) for value in args]
        return func(*args, **{name: _to(dtype, value) for name, value in kwargs.items()}).to(x.dtype)

    return rule


def _product(mode: Fitted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A rule for products: computed in the weights' dtype, the result in the dtype of the operand that was cast."""
    dtypes = {tensor.dtype: tensor.device.type for tensor in floating((*args, *kwargs.values()))}
    if len(dtypes) < 2 or (func in _AUTOCAST and autocast_is_on(min(dtypes.values()))):
        return func(*args, **kwargs)
    if func is torch.einsum and not _contracts(*args):
        return func(*args, **kwargs)
    dtype = mode.dtype if mode.dtype in dtypes else next((half for half in HALF if half in dtypes), torch.float32)
    given = next(other for other in dtypes if other != dtype)
    mode.cast(given, dtype)
    result = func(*(_to(dtype, a) for a in args), **{name: _to(dtype, value) for name, value in kwargs.items()})
    return result.to(given)


def _contracts(equation: Any, *operands: Any) -> bool:
    """Whether an einsum is a matrix product; an elementwise one promotes, and so does a sum over a size of one."""
    inputs, arrow, output = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    summed = set(inputs) - set(output) - {","}
    if not arrow or "..." in inputs or not all(isinstance(operand, torch.Tensor) for operand in operands):
        return not arrow or bool(summed)
    sizes = zip(inputs.replace(",", ""), (size for operand in operands for size in operand.shape), strict=False)
    return any(size > 1 for letter, size in sizes if letter in summed)


def _value(mode: Fitted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """float32's minimum, made for a mask in float32, does not fit what is in half precision: its own limit does."""
    if args and isinstance(args[0], torch.Tensor) and args[0].dtype in HALF:
        limit = torch.finfo(args[0].dtype).max

        def limited(value: Any) -> Any:
            if not isinstance(value, float) or not limit < abs(value) < float("inf"):
                return value
            mode.cast(torch.float32, args[0].dtype)
            return limit if value > 0 else -limit

        args = [limited(value) for value in args]
        kwargs = {name: limited(value) for name, value in kwargs.items()}
    return func(*args, **kwargs)


def _joined(mode: Fitted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Autocast refuses to join a half precision that is not its own, unless something in float32 stands before it."""
    tensors = list(args[0]) if args else []
    device = tensors[0].device.type if tensors else "cpu"
    if autocast_is_on(device):
        own = torch.get_autocast_dtype(device)
        unusual = (t.dtype for t in tensors if t.dtype in (torch.float32, *HALF) and t.dtype != own)
        if (other := next(unusual, torch.float32)) != torch.float32:
            mode.cast(other, own)
            args = [[t.to(own) if t.dtype == other else t for t in tensors], *args[1:]]
    return func(*args, **kwargs)


def _source(at: int) -> Any:
    """A rule for operations that write a source into a tensor: the source takes the tensor's dtype."""

    def rule(mode: Fitted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if len(args) > at and all(isinstance(args[i], torch.Tensor) for i in (0, at)) and _refuses(func, args):
            target, source = args[0].dtype, args[at].dtype
            if target != source and target.is_floating_point and source.is_floating_point:
                mode.cast(source, target)
                args = [*args[:at], args[at].to(target), *args[at + 1 :]]
        return func(*args, **kwargs)

    return rule


def _refuses(func: Any, args: Sequence[Any]) -> bool:
    """``x[index] = source`` with slices alone is a copy, which casts by itself."""
    index = args[1] if func is _T.__setitem__ else None
    return func is not _T.__setitem__ or any(
        isinstance(item, torch.Tensor) for item in (index if isinstance(index, tuple) else (index,))
    )


def _stays_floating(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    wanted = next((value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)), None)
    if wanted is not None and not wanted.is_floating_point and args[0].is_floating_point():
        return args[0]
    return func(*args, **kwargs)


def _clamped(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a forward wants from ``weight.clamp(-1.0, 1.0)``; clamping a frozen weight in place is left out."""
    weight, bounded = args[0], any(isinstance(value, float) for value in (*args[1:], *kwargs.values()))
    if weight.is_floating_point() or not bounded:
        return func(*args, **kwargs)
    if func in (_T.clamp_, torch.clamp_):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return func(dequantize_4bit(weight, weight.quant_state), *args[1:], **kwargs)


def _named(name: str) -> Iterator[Any]:
    """Operations that only some releases of torch have."""
    yield from (getattr(place, name) for place in (torch, nn.functional) if hasattr(place, name))


_F, _T = nn.functional, torch.Tensor
# What autocast casts, and what it leaves alone (measured on torch 2.13.0).
_AUTOCAST = {torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.mm, _T.mm, torch.bmm, _T.bmm}
_AUTOCAST |= {
    torch.linalg.vecdot,
    torch.addbmm,
    _T.addbmm,
    torch.baddbmm,
    _T.baddbmm,
    torch.addmm,
    _T.addmm,
    torch.einsum,
}
_PRODUCTS = _AUTOCAST | {torch.mv, _T.mv, torch.dot, _T.dot, torch.tensordot, _F.bilinear}
_PRODUCTS |= {torch.inner, _T.inner, torch.addmv, _T.addmv, torch.linalg.multi_dot}
_PRODUCTS |= {operation for name in ("_grouped_mm", "grouped_mm") for operation in _named(name)}
_CONVOLUTIONS: tuple[Any, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
_CONVOLUTIONS += (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_RULES: dict[Any, Any] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys((_F.linear, *_CONVOLUTIONS, _F.prelu, torch.prelu), _weighted("product", 1)),
    _F.layer_norm: _weighted("norm", 2),
    _F.group_norm: _weighted("norm", 2),
    _F.batch_norm: _weighted("batch_norm", 3),
    **dict.fromkeys((torch.masked_fill, _T.masked_fill, _T.masked_fill_, _F.pad), _value),
    **dict.fromkeys((torch.cat, torch.concat, torch.stack), _joined),
    **dict.fromkeys((torch.lerp, _T.lerp, _T.lerp_), _source(1)),
    **dict.fromkeys((torch.index_put, _T.index_put, _T.index_put_, _T.__setitem__), _source(2)),
    **dict.fromkeys((torch.masked_scatter, _T.masked_scatter, _T.masked_scatter_), _source(2)),
    **dict.fromkeys((torch.index_add, _T.index_add, _T.index_add_), _source(3)),
    **dict.fromkeys((torch.scatter, _T.scatter, _T.scatter_), _source(3)),
    **dict.fromkeys((torch.scatter_add, _T.scatter_add, _T.scatter_add_), _source(3)),
}
_STORAGE: dict[Any, Any] = {
    _T.to: _stays_floating,
    **dict.fromkeys((torch.clamp, torch.clamp_, _T.clamp, _T.clamp_), _clamped),
}
