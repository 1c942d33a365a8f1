"""DeepSpeed's ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch

from .base import Autocasting, Tensors, adamw

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed

# Its own all-reduce would be compiled first; gloo's does (deepspeed 0.19.8, comm/torch.py, build_shm_op).
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
OPTIONS = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


class ZeRO2(Autocasting):
    zero: ClassVar[dict[str, Any]] = {"stage": 2}

    def prepare(self, model: Any) -> tuple[Any, Any]:
        optimizer, zero = adamw(model), self.zero
        # >>>
        config = {**OPTIONS, "zero_optimization": zero, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
        model, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        # <<<
        return model, optimizer

    def step(self, ids: torch.Tensor) -> float:
        loss = self.model(input_ids=ids, labels=ids).loss
        self.model.backward(loss)
        self.model.step()
        return float(loss.item())

    def full(self) -> Tensors:
        return {name: value.clone() for name, value in self.model.module.state_dict().items()}


class ZeRO3(ZeRO2):
    # Nothing is small enough to stay whole.
    zero: ClassVar = {"stage": 3, "stage3_param_persistence_threshold": 0}

    def full(self) -> Tensors:
        with deepspeed.zero.GatheredParameters([*self.model.module.parameters()]):
            return super().full()

    def shards(self) -> Tensors:
        return {name: parameter.ds_tensor for name, parameter in self.model.module.named_parameters()}
