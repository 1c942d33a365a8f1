"""What a program does with a model that more than one process trains."""

from __future__ import annotations

import abc
import contextlib
from typing import Any

import torch

from toys.layers import BF16

Tensors = dict[str, torch.Tensor]


class Engine(abc.ABC):
    """A model, trained by more than one process.

    Args:
        model: a PEFT model that no engine has yet.

    Attributes:
        model: what the program calls.
        optimizer: of its adapters.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.optimizer = self.prepare(model)

    @abc.abstractmethod
    def prepare(self, model: Any) -> tuple[Any, Any]:
        """The model in the engine, and an optimizer."""

    def step(self, ids: torch.Tensor) -> float:
        """A step under autocast, and its loss."""
        with self.autocast():
            loss = self.model(input_ids=ids, labels=ids).loss
        self.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.item())

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", BF16)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def evaluate(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits, outside of autocast."""
        logits: torch.Tensor = self.model(input_ids=ids).logits
        return logits

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Tokens, outside of autocast."""
        model = self.model
        # >>>
        tokens = model.module.generate(**inputs)
        # <<<
        return tokens

    @abc.abstractmethod
    def full(self) -> Tensors:
        """The state dict, whole on every rank."""

    def shards(self) -> Tensors:
        """What this rank holds of it."""
        return self.full()


class Autocasting(Engine):
    """What it makes is called under autocast by itself; the PEFT model in it is not."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def evaluate(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.module(input_ids=ids).logits
        return logits


def adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
