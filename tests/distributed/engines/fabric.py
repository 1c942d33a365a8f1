"""Lightning Fabric; its strategy here is DDP."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric

from .base import Engine, Tensors, adamw


class FabricDDP(Engine):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        optimizer = adamw(model)
        # >>>
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="bf16-mixed")
        fabric.launch()
        model, optimizer = fabric.setup(model, optimizer)
        # <<<
        self.fabric = fabric
        return model, optimizer

    def step(self, ids: torch.Tensor) -> float:
        loss = self.model(input_ids=ids, labels=ids).loss
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.item())

    def evaluate(self, ids: torch.Tensor) -> torch.Tensor:
        """Fabric's model is called under autocast, its module is not."""
        logits: torch.Tensor = self.model.module(input_ids=ids).logits
        return logits

    def generate(self, **inputs: Any) -> torch.Tensor:
        model = self.model
        # >>>
        tokens = model.module.generate(**inputs)
        # <<<
        return tokens

    def full(self) -> Tensors:
        return dict(self.model.state_dict())
