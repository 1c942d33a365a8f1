"""Modules outside of what the shim has taken in, where it casts nothing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...hosts.bitsandbytes import is_kbit
from ...numerics import training
from ..advice import advice
from ..dtypes import weight_of
from .finding import Finding, Looked

PATCH = "peft.boundary"
_OFF = "mismatches that are named here raise outside of autocast"
_OUTSIDE = "a mismatch in it raises outside of autocast: the shim watches the models that it has taken in"


def find(looked: Looked) -> Iterator[Finding]:
    model, name = looked.model, type(looked.model).__name__
    if _is_off(looked):
        what = f"{PATCH} is not at work in this process"
        yield Finding("", name, "unguarded", what, _OFF, advice("off", looked.program))
        return
    inside = guarded(model)
    outside = [(path, one) for path, one in model.named_modules() if id(one) not in inside]
    if len(outside) == sum(1 for _ in model.modules()):
        say = advice("unguarded", looked.program)
        yield Finding("", name, "unguarded", "no module of it has been taken in", _OUTSIDE, say)
        return
    for path, module in outside:
        if weight_of(module) is not None and not is_kbit(module):
            what = "it is outside of the model that was taken in"
            say = advice("unguarded", looked.program)
            yield Finding(path, type(module).__name__, "unguarded", what, _OUTSIDE, say)


def watched(looked: Looked) -> set[int]:
    """Ids of the modules in which a mismatch is cast."""
    return set() if _is_off(looked) else guarded(looked.model)


def guarded(model: nn.Module) -> set[int]:
    """Ids of the modules that are in a model that was taken in."""
    found = {id(part) for root in training.models() for part in root.modules()}
    return found | {id(part) for one in model.modules() if training.is_taken_in(one) for part in one.modules()}


def _is_off(looked: Looked) -> bool:
    return any(one.name == PATCH and not one.on for one in looked.installations)
