"""4-bit layers whose compute dtype was left at float32, or is not set."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...hosts.bitsandbytes import is_4bit
from ..advice import advice
from .finding import Finding, Looked

_SLOW = "every product runs in float32: several times slower on a GPU, and more memory"
_UNSET = "bitsandbytes sets it to the dtype of the first input that the layer is given, for good"


def find(looked: Looked) -> Iterator[Finding]:
    for path, module in looked.model.named_modules():
        if not is_4bit(module):
            continue
        dtype = module.__dict__.get("compute_dtype")
        if dtype not in (None, torch.float32):
            continue
        what = "no compute dtype is set" if dtype is None else "its compute dtype is float32, the default"
        meaning, name = _UNSET if dtype is None else _SLOW, type(module).__name__
        yield Finding(path, name, "compute dtype", what, meaning, advice("compute dtype", looked.program))
