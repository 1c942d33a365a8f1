"""What a rule says, and what is done by it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import get_testing_overrides

from ..dtypes import HALF, autocast_is_on, cast, first, floating

Args = Sequence[Any]
Kwargs = Mapping[str, Any]
Dtypes = tuple[torch.dtype, torch.dtype]
Tensors = Sequence[torch.Tensor]
Operands = dict[Any, Any]  # by position or keyword
Told = tuple[str, torch.dtype, torch.dtype]


def operand(args: Args, kwargs: Kwargs, at: int, name: str) -> Any:
    """The operand that torch's signature has at a position, under a name."""
    return args[at] if len(args) > at else kwargs.get(name)


def found(*names: str) -> Iterator[Any]:
    """The functions of a name in torch, in its Tensor, in torch.nn.functional and torch.linalg: releases differ."""
    for name in names:
        for place in (torch, torch.Tensor, nn.functional, torch.linalg):
            function = getattr(place, name, None)
            if callable(function):
                yield function


def name_of(func: Any, at: int | str) -> str:
    """What torch's own table of signatures calls the operand at a position."""
    if isinstance(at, str):
        return at
    return "operand" if torch.compiler.is_compiling() else _names(func).get(at, "operand")


@functools.cache
def _names(func: Any) -> dict[int, str]:
    signature = get_testing_overrides().get(func)
    names = inspect.signature(signature).parameters if signature else ()
    return {at: {"self": "input", "v": "source"}.get(name, name) for at, name in enumerate(names)}


def first_operand(func: Any, operands: Tensors) -> Dtypes:
    """The first operand's dtype, for operations that write to it."""
    return operands[0].dtype, operands[0].dtype


def widest(func: Any, operands: Tensors) -> Dtypes:
    """The widest dtype, and the first operand's for the result; two half precisions are computed in float32.

    Coordinates, thresholds and numbers of items lose their meaning in half precision, and autocast computes nearly all
    of these operations in float32. Not ``torch.promote_types``, which raises an error for float8.
    """
    dtype = operands[0].dtype
    for tensor in operands:
        if tensor.dtype != dtype:
            bits, others = torch.finfo(dtype).bits, torch.finfo(tensor.dtype).bits
            if bits <= others:
                dtype = tensor.dtype if bits < others else torch.float32
    return dtype, operands[0].dtype


def joined(func: Any, operands: Tensors) -> Dtypes:
    """The widest dtype, for the result as well. Autocast refuses a half precision that is not its own."""
    dtype, device = widest(func, operands)[0], operands[0].device.type
    if dtype in HALF and autocast_is_on(device):
        dtype = torch.get_autocast_dtype(device)
    return dtype, dtype


def activations(func: Any, operands: Tensors) -> Dtypes:
    """A parameter's dtype, else autocast's or the half precision; and that of the first that is no parameter."""
    given = first((tensor for tensor in operands if not isinstance(tensor, nn.Parameter)), operands[0]).dtype
    parameter = first(tensor for tensor in operands if isinstance(tensor, nn.Parameter))
    if parameter is not None:
        return parameter.dtype, given
    if autocast_is_on(operands[0].device.type):
        return torch.get_autocast_dtype(operands[0].device.type), given
    return first((half for half in HALF if any(tensor.dtype == half for tensor in operands)), torch.float32), given


def to(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    return cast(dtype, value)


def never(func: Any, args: Args, kwargs: Kwargs) -> bool:
    return False


def mixed(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether floating operands differ in dtype."""
    dtypes = [tensor.dtype for tensor in floating((*args, *kwargs.values()))]
    return any(dtype != dtypes[0] for dtype in dtypes)


def mixed_outside_autocast(func: Any, args: Args, kwargs: Kwargs) -> bool:
    device = device_of(args, kwargs)
    return device is not None and not autocast_is_on(device) and mixed(func, args, kwargs)


def cast_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """What CUDA's autocast casts by itself, and the CPU's leaves alone (torch 2.13.0, ATen/autocast_mode.h)."""
    return mixed(func, args, kwargs) and not autocast_is_on_a_gpu(args, kwargs)


def promoted_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """What CUDA's autocast promotes as the CPU's does a join, and the CPU's leaves alone (the same)."""
    return mixed(func, args, kwargs) and (not autocast_is_on_a_gpu(args, kwargs) or not_autocasts(func, args, kwargs))


def autocast_is_on_a_gpu(args: Args, kwargs: Kwargs) -> bool:
    device = device_of(args, kwargs)
    return device not in (None, "cpu") and autocast_is_on(device)


def device_of(args: Args, kwargs: Kwargs) -> Any:
    """The type of the device of the first floating operand; None where there is none."""
    tensor = first(floating((*args, *kwargs.values())))
    return None if tensor is None else tensor.device.type


def not_autocasts(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Autocast refuses to join a half precision that is not its own, unless something in float32 stands before it."""
    tensors = [*floating((*args, *kwargs.values()))]
    if not tensors or not autocast_is_on(tensors[0].device.type):
        return False
    own = torch.get_autocast_dtype(tensors[0].device.type)
    unusual = (t.dtype for t in tensors if t.dtype in (torch.float32, *HALF) and t.dtype != own)
    return bool(first(unusual, torch.float32) != torch.float32)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to do with an operation that torch refuses for its operands' dtypes.

    Attributes:
        refuses: whether torch would, asked only while Dynamo traces: exactly as torch decides.
        dtypes: the dtype to compute in, and the result's.
        fit: ``fit(dtype, position or keyword, operand)`` gives what takes an operand's place.
        written: positions or keywords, and operands, of what the operation writes to beside its first operand. Torch
            may have written before it refuses, so there ``refuses`` is asked first.
        in_place: whether it writes to its first operand, so that no other dtype will do.
    """

    refuses: Callable[[Any, Args, Kwargs], bool] = never
    dtypes: Callable[[Any, Tensors], Dtypes] = widest
    fit: Callable[[torch.dtype, int | str, Any], Any] = to
    written: Callable[[Args, Kwargs], Sequence[tuple[int | str, torch.Tensor]]] | None = None
    in_place: bool = False


def fit(rule: Rule, func: Any, args: Args, kwargs: Kwargs, dtype: torch.dtype) -> tuple[Operands, Told | None]:
    """What takes the operands' places, and the first change as ``mode.may_cast`` wants it told."""
    operands: Operands = {**dict(enumerate(args)), **kwargs}
    fitted = {at: rule.fit(dtype, at, value) for at, value in operands.items()}
    for at, value in operands.items():
        if isinstance(value, float) and value != fitted[at]:
            return fitted, ("value", torch.float32, dtype)
        for before, after in zip(floating([value]), floating([fitted[at]])):  # noqa: B905 (Dynamo of torch 2.4)
            if before.dtype != after.dtype:
                return fitted, (name_of(func, at), before.dtype, after.dtype)
    return fitted, None


def run(rule: Rule, func: Any, args: Args, kwargs: Kwargs, fitted: Operands, given: torch.dtype) -> Any:
    """The call with the operands that fit, its result in a dtype; what it writes to copies is written back."""
    result = func(*(fitted[at] for at in range(len(args))), **{name: fitted[name] for name in kwargs})
    for at, tensor in rule.written(args, kwargs) if rule.written is not None else ():
        if fitted[at] is not tensor:
            with torch.no_grad():
                tensor.copy_(fitted[at])
    return cast(given, result)
