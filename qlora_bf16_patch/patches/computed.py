"""What an adapter's layer casts where torch would not have raised, to compute as it trained; told to who listens."""

from __future__ import annotations

from typing import Any

import torch

from ..engine.installation import Installation
from ..hosts.peft import active_dtypes
from ..watching.events import computed


def tell_computed(installation: Installation, layer: Any, given: torch.dtype, dtype: torch.dtype) -> None:
    """An adapter's layer that was given ``given`` computes in ``dtype``, and gives ``given`` back."""
    computed(installation, layer, "input", given, dtype)
    for theirs in active_dtypes(layer):
        computed(installation, layer, "adapter", theirs, dtype)
    computed(installation, layer, "result", dtype, given)
