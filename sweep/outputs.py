"""Finds the tensors in whatever a model returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Floating tensors with a dimension, in the order in which they are returned; a loss is none of them."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.dim():
            yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name != "loss":
                yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value):
        yield from tensors({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})


def logits(outputs: Any) -> torch.Tensor:
    """The model's logits, or the first tensor that it returns."""
    value = getattr(outputs, "logits", None)
    for tensor in tensors([value, outputs]):
        return tensor
    raise ValueError(f"no floating tensor in {described(outputs)}")


def loss(outputs: Any) -> torch.Tensor:
    """The model's loss, or a mean, with weights that a norm's output does not cancel, where it has none."""
    value = getattr(outputs, "loss", None)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return value.sum()
    for tensor in tensors([getattr(outputs, "logits", None), outputs]):
        if tensor.requires_grad:
            flat = tensor.float().flatten()
            return (flat * torch.linspace(-1, 2, flat.numel(), device=flat.device)).mean()
    raise ValueError(f"no loss and no tensor with gradients in {described(outputs)}")


def described(outputs: Any) -> str:
    return str(outputs.dtype) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
