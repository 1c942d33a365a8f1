"""``Accelerator.prepare`` and ``unwrap_model``; two processes are DDP."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from .base import Autocasting, Tensors, adamw


class Accelerate(Autocasting):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        optimizer = adamw(model)
        # >>>
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model, optimizer = accelerator.prepare(model, optimizer)
        # <<<
        self.accelerator = accelerator
        return model, optimizer

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def evaluate(self, ids: torch.Tensor) -> torch.Tensor:
        """What ``prepare`` has made is called under autocast; what it was made from is not, from here on."""
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        logits: torch.Tensor = base(input_ids=ids).logits
        return logits

    def generate(self, **inputs: Any) -> torch.Tensor:
        accelerator, model = self.accelerator, self.model
        # >>>
        tokens = accelerator.unwrap_model(model).generate(**inputs)
        # <<<
        return tokens

    def full(self) -> Tensors:
        return dict(self.accelerator.get_state_dict(self.model))
