"""Lightning Fabric; its strategy here is DDP."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric

from .base import Autocasting, Tensors, adamw


class FabricDDP(Autocasting):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        optimizer = adamw(model)
        # >>>
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="bf16-mixed")
        fabric.launch()
        model, optimizer = fabric.setup(model, optimizer)
        # <<<
        self.fabric = fabric
        return model, optimizer

    def backward(self, loss: torch.Tensor) -> None:
        self.fabric.backward(loss)

    def full(self) -> Tensors:
        return dict(self.model.state_dict())
