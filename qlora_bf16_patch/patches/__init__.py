"""The catalogue. A new patch is one file in this folder and one line here."""

from __future__ import annotations

from ..registry import Patch
from . import attention, boundary, linear4bit, lora

CATALOGUE: tuple[Patch, ...] = (linear4bit.PATCH, lora.PATCH, boundary.PATCH, attention.PATCH)
