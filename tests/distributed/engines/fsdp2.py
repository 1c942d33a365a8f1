"""FSDP2, ``fully_shard``."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from .base import Engine, Tensors, adamw


class FSDP2(Engine):
    def prepare(self, model: Any) -> tuple[Any, Any]:
        # >>>
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
        register_fsdp_forward_method(model, "generate")
        # <<<
        return model, adamw(model)

    def generate(self, **inputs: Any) -> torch.Tensor:
        model = self.model
        # >>>
        tokens = model.generate(**inputs)
        # <<<
        return tokens

    def full(self) -> Tensors:
        options = StateDictOptions(full_state_dict=True)
        found: Tensors = get_model_state_dict(self.model, options=options)
        return found

    def shards(self) -> Tensors:
        return {name: getattr(value, "_local_tensor", value) for name, value in self.model.state_dict().items()}
