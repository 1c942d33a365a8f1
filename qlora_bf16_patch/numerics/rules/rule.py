"""What a rule says, and what is done by it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import get_testing_overrides

from ..dtypes import cast, floating

Args = Sequence[Any]
Kwargs = Mapping[str, Any]
Dtypes = tuple[torch.dtype, torch.dtype]
Tensors = Sequence[torch.Tensor]
Operands = dict[Any, Any]  # by position or keyword
Told = tuple[str, torch.dtype, torch.dtype]


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


def to(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    return cast(dtype, value)


def never(func: Any, args: Args, kwargs: Kwargs) -> bool:
    return False


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
