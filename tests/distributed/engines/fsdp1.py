"""FSDP1, ``FullyShardedDataParallel``, with the parameters as they were and with flat ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from .base import Engine, Tensors, adamw

CPU = torch.device("cpu")


class FSDP1(Engine):
    use_orig_params = True

    def prepare(self, model: Any) -> tuple[Any, Any]:
        use_orig_params = self.use_orig_params
        # >>>
        policy = ModuleWrapPolicy({LlamaDecoderLayer, LlamaRMSNorm, nn.Embedding, nn.Linear})
        model = FSDP(model, auto_wrap_policy=policy, use_orig_params=use_orig_params, device_id=CPU)
        # <<<
        return model, adamw(model)

    def generate(self, **inputs: Any) -> torch.Tensor:
        model = self.model
        # >>>
        with FSDP.summon_full_params(model, recurse=False, writeback=False):
            tokens = model.generate(**inputs)
        # <<<
        return tokens

    def full(self) -> Tensors:
        return self._state(StateDictType.FULL_STATE_DICT)

    def shards(self) -> Tensors:
        return {name: _local(value) for name, value in self._state(StateDictType.SHARDED_STATE_DICT).items()}

    def _state(self, kind: StateDictType) -> Tensors:
        with FSDP.state_dict_type(self.model, kind):
            return dict(self.model.state_dict())


class FlatFSDP1(FSDP1):
    use_orig_params = False


def _local(value: Any) -> torch.Tensor:
    """A rank's part of a sharded tensor; it may have none."""
    if not hasattr(value, "local_shards"):
        return value  # type: ignore[no-any-return]
    shards = value.local_shards()
    return shards[0].tensor if shards else torch.empty(0)
