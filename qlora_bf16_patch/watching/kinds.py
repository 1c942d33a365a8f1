"""A kind of call: what decides the dtypes inside a model, and which of its branches run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..numerics.dtypes import autocast_is_on

Kind = tuple[Any, ...]


def kind_of(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind:
    """Two calls of one kind run the same operations on the same dtypes, but for branches on data.

    It holds whether the module trains, whether there are gradients, autocast and its dtype, the arguments' dtypes, one
    token or more, which arguments are there, and the class' name of each that is not a tensor. What a list, a dict or
    a cache holds is not looked at: it differs from call to call.
    """
    first = None
    found: list[Any] = []
    for value in args:
        if isinstance(value, torch.Tensor):
            first = value if first is None else first
            found.append(value.dtype)
        else:
            found.append(value if value is None or value is True or value is False else type(value).__name__)
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            first = value if first is None else first
            found.append((name, value.dtype))
        elif value is not None:
            found.append((name, value if value is True or value is False else type(value).__name__))
    device = "cpu" if first is None else first.device.type
    autocast = torch.get_autocast_dtype(device) if autocast_is_on(device) else None
    one_token = first is not None and first.dim() > 1 and not first.is_nested and first.shape[1] == 1
    return module.training, torch.is_grad_enabled(), device, autocast, one_token, *found


def spoken_kind(kind: Kind | None) -> str:
    """A kind as a reader knows it; nothing outside of a watched call."""
    if kind is None:
        return ""
    training, gradients, _device, autocast, one_token = kind[:5]
    return ", ".join(
        [
            "training" if training else "evaluation",
            *([] if training == gradients else ["with gradients" if gradients else "without gradients"]),
            *([f"autocast to {autocast}"] if autocast else []),
            *(["one token"] if one_token else []),
        ]
    )
