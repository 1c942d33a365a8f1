"""Which dtypes there are in a call, and in a module, in words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..hosts.bitsandbytes import is_4bit, is_kbit
from ..numerics.dtypes import autocast_is_on

_DEPTH = 4  # of containers: a cache of keys and values is not looked through


def short(dtype: torch.dtype) -> str:
    """``bfloat16``, not ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def floating_dtypes(value: Any) -> tuple[str, ...]:
    """Those of the floating tensors in a value, each once, in order."""
    return tuple(dict.fromkeys(short(tensor.dtype) for tensor in tensors_in(value) if tensor.is_floating_point()))


def tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, Mapping):
        for item in _read(lambda: list(value.values()), ()):
            yield from tensors_in(item, depth - 1)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(_read(functools.partial(getattr, value, field.name), None), depth - 1)


def _read(value: Callable[[], Any], otherwise: Any) -> Any:
    """``otherwise`` where it cannot be read: a field may not be set, a value may be computed when it is asked for."""
    try:
        return value()
    except Exception:  # of a program's own code
        return otherwise


def weight_of(module: torch.nn.Module) -> str | None:
    """Dtype of a module's own weight, or how a k-bit layer packs it; None where it has none."""
    held = dict(module._parameters.items())  # a ScriptModule's are no dict
    weight = held.get("weight", module.__dict__.get("weight"))
    if is_4bit(module):
        return str(getattr(weight, "quant_type", None) or "4-bit")
    if is_kbit(module):
        return "int8"
    own = (weight, *held.values())
    return next((short(one.dtype) for one in own if isinstance(one, torch.Tensor) and one.is_floating_point()), None)


def compute_of(module: torch.nn.Module) -> str | None:
    """The compute dtype of a 4-bit layer, where one is configured."""
    dtype = module.__dict__.get("compute_dtype") if is_4bit(module) else None
    return short(dtype) if isinstance(dtype, torch.dtype) else None


def autocast_around(value: Any) -> str | None:
    """The dtype of the autocast region that a call with these arguments is in."""
    device = next(
        (tensor.device.type for tensor in tensors_in(value)), "cuda" if torch.is_autocast_enabled() else "cpu"
    )
    return short(torch.get_autocast_dtype(device)) if autocast_is_on(device) else None
