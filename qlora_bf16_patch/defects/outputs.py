"""``*.autocast_output``."""

from __future__ import annotations

from typing import Any

import torch

from .adapters import ia3
from .promise import Promise
from .toys import device, hidden_states, layer, lora


def kbit() -> tuple[Promise, ...]:
    return (
        Promise("gives back autocast's dtype from 4-bit layers", lambda: _follows(layer(4))),
        Promise(
            "gives back autocast's dtype from 8-bit layers",
            lambda: _follows(layer(8)),
            broken_on="a GPU, nor on a CPU before bitsandbytes 0.48",  # bitsandbytes#1728: training in floating point
        ),
    )


def lora_layers() -> tuple[Promise, ...]:
    return (
        Promise("gives back autocast's dtype from LoRA on 4-bit layers", lambda: _follows(lora(4))),
        Promise("gives back autocast's dtype from LoRA on 8-bit layers", lambda: _follows(lora(8))),
    )


def tuners() -> tuple[Promise, ...]:
    return (Promise("gives back autocast's dtype from IA3", lambda: _follows(ia3())),)


def _follows(module: Any) -> bool:
    with torch.autocast(device(), torch.bfloat16):
        return module(hidden_states()).dtype == torch.bfloat16  # type: ignore[no-any-return]
