"""Casting helpers that several patches share. Torch alone; nothing here knows a patch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

HALF = (torch.bfloat16, torch.float16)
_Module = TypeVar("_Module")


def stand_in(module: _Module, **attributes: Any) -> _Module:
    """An object of ``module``'s class that shares everything with it but ``attributes``.

    Upstream's forward is run on it where one attribute must be another for this call alone: nothing is written to the
    module, so no other thread sees it. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).

    Args:
        module: any object with a ``__dict__``.
        attributes: what differs, by its name in the ``__dict__``.
    """
    cls = type(module)
    other = cls.__new__(cls)
    other.__dict__.update(module.__dict__)
    other.__dict__.update(attributes)
    return other


def floating(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The floating tensors among ``values``, one level deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor) and item.is_floating_point())


def mixed_is_allowed(kind: str, x: torch.Tensor, weight: torch.dtype) -> bool:
    """Whether torch itself takes an input of another floating dtype than the weights'.

    Measured on torch 2.13.0: autocast casts matrix products and convolutions on every device, and on CUDA the
    normalizations too. Elsewhere a normalization takes half precision inputs with float32 weights: on CPU each of them
    ("mixed dtype"), on CUDA batch norm alone.

    Args:
        kind: ``product`` or ``norm`` or ``batch_norm``.
        x: the input, of another floating dtype than ``weight``.
        weight: dtype of the weights.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    if kind == "product":
        return autocast
    if kind == "norm" and device != "cpu":
        return autocast
    return weight == torch.float32 and x.dtype in HALF
