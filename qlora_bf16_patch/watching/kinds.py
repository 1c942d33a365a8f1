"""A kind of call: what decides the dtypes inside a model, and which of its branches run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..numerics.dtypes import autocast_is_on, first

Kind = tuple[Any, ...]


def kind_of(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind:
    """Two calls of one kind run the same operations on the same dtypes, but for branches on data.

    It holds whether the module trains, whether there are gradients, autocast and its dtype, the arguments' dtypes, one
    token or more, which arguments are there, and the class' name of each that is not a tensor. What a list, a dict or
    a cache holds is not looked at: it differs from call to call.
    """
    tensor = first_tensor(args, kwargs)
    given = [_shown(value) for value in args]
    given += [(name, _shown(value)) for name, value in kwargs.items() if value is not None]
    device = "cpu" if tensor is None else tensor.device.type
    autocast = torch.get_autocast_dtype(device) if autocast_is_on(device) else None
    one_token = tensor is not None and tensor.dim() > 1 and not tensor.is_nested and tensor.shape[1] == 1
    return module.training, torch.is_grad_enabled(), device, autocast, one_token, *given


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The first tensor among a call's arguments."""
    return first(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))  # type: ignore[no-any-return]


def _shown(value: Any) -> Any:
    shown = value if value is None or value is True or value is False else type(value).__name__
    return value.dtype if isinstance(value, torch.Tensor) else shown


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
