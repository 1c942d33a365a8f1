"""``DistributedDataParallel``, as it is and compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .base import Engine, Tensors, adamw

BUCKET = 0.01  # MiB


class DDP(Engine):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        # >>>
        model = DistributedDataParallel(model)
        # <<<
        return model, adamw(model)

    def full(self) -> Tensors:
        return dict(self.model.module.state_dict())


class CompiledDDP(DDP):
    """With buckets so small that Dynamo splits its graph at them (DDPOptimizer)."""

    def prepare(self, model: Any) -> tuple[Any, Any]:
        # The first is 1 MiB otherwise, more than all adapters here (torch 2.13.0, _dynamo/backends/distributed.py).
        dist._DEFAULT_FIRST_BUCKET_BYTES = 1024
        model = torch.compile(DistributedDataParallel(model, bucket_cap_mb=BUCKET), backend="aot_eager")
        return model, adamw(model)
