"""Ray Train, whose ``prepare_model`` is DDP. It starts the two processes itself: see ``workers.py``."""

from __future__ import annotations

from typing import Any

import ray.train.torch

from .base import adamw
from .ddp import DDP


class RayDDP(DDP):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        # >>>
        model = ray.train.torch.prepare_model(model)
        # <<<
        return model, adamw(model)
