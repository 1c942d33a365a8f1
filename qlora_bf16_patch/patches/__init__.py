"""The catalogue. A new patch is one file in this folder and one line here."""

from __future__ import annotations

from ..registry import Patch
from . import attention, autocast_output, boundary, generate, linear4bit, linear8bit, lora, tuners

CATALOGUE: tuple[Patch, ...] = (
    linear4bit.PATCH,
    linear8bit.PATCH,
    lora.LINEAR4BIT,
    lora.LINEAR8BIT,
    tuners.PATCH,
    boundary.PATCH,
    attention.TORCH,
    attention.TRANSFORMERS,
    generate.PATCH,
    autocast_output.LINEAR4BIT,  # after those that they stand on
    autocast_output.LORA_LINEAR4BIT,
)
