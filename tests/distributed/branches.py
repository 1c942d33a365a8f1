"""A mismatch in a branch that the tokens of one rank take, or of both, in a model whose shards a forward gathers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

from toys.layers import BF16, SIZE, kbit

BY_ONE, BY_BOTH = "a branch of one rank", "a branch of both ranks"


class Layer(nn.Module):
    def __init__(self, storage: torch.dtype) -> None:
        super().__init__()
        self.proj = kbit(4, bias=BF16, quant_storage=storage)
        self.proj.bias.requires_grad_(False)
        self.expert = nn.Parameter(torch.randn(SIZE, SIZE).to(BF16) / 8, requires_grad=False)

    def forward(self, x: torch.Tensor, taken: bool) -> torch.Tensor:
        hidden = self.proj(x)
        return hidden + hidden.float() @ self.expert if taken else hidden


class Model(nn.Module):
    """Takes the branch in its last layer, behind all that is gathered."""

    is_loaded_in_4bit = True

    def __init__(self, storage: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(storage) for _ in range(2))

    def forward(self, x: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        last = len(self.layers) - 1
        for position, layer in enumerate(self.layers):
            x = layer(x, position == last and bool(taken))
        return x


def built(storage: torch.dtype, taken: bool) -> tuple[Any, torch.Tensor]:
    """A sharded model, and what it is to come to."""
    config = LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False)
    model = get_peft_model(Model(storage), config, autocast_adapter_dtype=False).to(BF16).eval()
    expected = called(copy.deepcopy(model), taken)
    for layer in model.get_base_model().layers:
        fully_shard(layer)
    return fully_shard(model), expected


@torch.no_grad()
def called(model: Any, taken: bool) -> torch.Tensor:
    x = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(dist.get_rank())).to(BF16)
    result: torch.Tensor = model(x, torch.tensor(taken))
    return result


def by_one() -> dict[str, Any]:
    """The second call of a kind."""
    taken = dist.get_rank() == 0
    model, expected = built(BF16, taken)
    called(model, False)
    try:
        return {"right": torch.equal(called(model, taken), expected)}
    except RuntimeError as error:
        return {"error": str(error), "note": " ".join(getattr(error, "__notes__", ()))}


def by_both() -> dict[str, Any]:
    """The first call of a kind, of a model that was called in another one."""
    model, expected = built(torch.uint8, True)
    called(model.train(), False)
    calls: list[int] = []
    model.get_base_model().layers[0].proj.register_forward_hook(lambda *_: calls.append(1))
    return {"right": torch.equal(called(model.eval(), True), expected), "calls": len(calls)}


SCENARIOS = {BY_ONE: by_one, BY_BOTH: by_both}
