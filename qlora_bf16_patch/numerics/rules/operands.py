"""Operands of a call: where they stand, what they are called, what becomes of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import get_testing_overrides

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


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
