"""Operands of a call, wherever it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


def operand(args: Sequence[Any], kwargs: Mapping[str, Any], at: int, name: str) -> Any:
    """The operand that torch's signature has at a position, under a name."""
    return args[at] if len(args) > at else kwargs.get(name)


def replaced(
    args: Sequence[Any], kwargs: Mapping[str, Any], at: int, name: str, value: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The call with another operand there."""
    if len(args) > at:
        return [*args[:at], value, *args[at + 1 :]], dict(kwargs)
    return list(args), {**kwargs, name: value}


def found(module_attribute: str) -> Iterator[Any]:
    """The functions of a name in torch, in its Tensor, in torch.nn.functional and torch.linalg: releases differ."""
    for place in (torch, torch.Tensor, nn.functional, torch.linalg):
        function = getattr(place, module_attribute, None)
        if callable(function):
            yield function
