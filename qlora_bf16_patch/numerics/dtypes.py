"""Floating dtypes, and how torch itself treats a mixture of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

HALF = (torch.bfloat16, torch.float16)
# On integers that activations were cast to, for one call: those, and what to call where they are taken instead.
SOURCE = "_qlora_bf16_patch_source"


def floating(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The floating tensors among ``values``, one level deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor) and item.is_floating_point())


def first(values: Iterable[Any], default: Any = None) -> Any:
    """The first of ``values``. On torch 2.8 Dynamo cannot trace ``next`` with a default."""
    for value in values:
        return value
    return default


def cast(dtype: torch.dtype, value: Any) -> Any:
    """``value`` with its floating tensors in ``dtype``, in lists and tuples as well."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(cast(dtype, item) for item in value) if type(value) in (list, tuple) else value
    return value


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a device's type; ``torch.is_autocast_enabled`` raises for one that has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


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
    autocast = autocast_is_on(device)
    if kind == "product":
        return autocast
    if kind == "norm" and device != "cpu":  # pragma: no cover: on a GPU
        return autocast
    return weight == torch.float32 and x.dtype in HALF
