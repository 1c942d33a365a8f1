"""Engines by name, each in a file of its own that is imported where it is asked for.

Lines between ``# >>>`` and ``# <<<`` are what a user writes: ``docs/engines.md`` shows them as they stand here.
"""

from __future__ import annotations

import importlib
from typing import Any

CHECKPOINTED = ", checkpointed"  # behind an engine's name: with activation checkpointing
ENGINES = {
    "DDP": "ddp:DDP",
    "compiled DDP": "ddp:CompiledDDP",
    "FSDP2": "fsdp2:FSDP2",
    "FSDP1": "fsdp1:FSDP1",
    "FSDP1, flat": "fsdp1:FlatFSDP1",
    "Accelerate": "accelerator:Accelerate",
    "ZeRO-2": "zero:ZeRO2",
    "ZeRO-3": "zero:ZeRO3",
    "Fabric": "fabric:FabricDDP",
    "Ray Train": "ray_train:RayDDP",
}
# What starts its processes itself.
TRAINER, RAY = "Trainer", "Ray Train"


def engine(name: str) -> Any:
    """The class of an engine."""
    module, _, cls = ENGINES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)
