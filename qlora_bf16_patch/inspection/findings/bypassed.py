"""Modules whose call does not reach the patch that is at work for the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ...engine.binding import KEPT
from ...engine.installation import Installation
from ...engine.wrapping import reaches
from ..advice import advice
from .finding import Finding, Looked

_MEANING = "{patch} is not called there: the module computes as it does without the shim"
_UNKNOWN = "{patch} is only called there if that forward calls the patched one; it does not say so by `__wrapped__`"


def find(looked: Looked) -> Iterator[Finding]:
    for path, module in looked.model.named_modules():
        for installation in looked.installations:
            if not installation.on:
                continue
            wanted = _wanted(installation, module)
            if wanted and not any(reaches(function, wanted) for function in _entries(module)):
                what, kind = _who(module)
                meaning = (_MEANING if kind == "kept forward" else _UNKNOWN).format(patch=installation.name)
                say = advice(kind, looked.program)
                yield Finding(path, type(module).__name__, "bypassed", what, meaning, say)


def _wanted(installation: Installation, module: nn.Module) -> list[Any]:
    """The patch's functions that a call of the module should reach; none where it is not the patch's."""
    if module in installation.bound:
        return [installation.bound[module]]
    owners = {target.owner for target in installation.targets if target.attribute == "forward"}
    if not owners.intersection(type(module).__mro__):
        return []
    return [layer.function for layer in installation.layers if layer.target.owner in type(module).__mro__] or [None]


def _entries(module: nn.Module) -> list[Any]:
    """What a call of the module begins with, and what our bindings and accelerate's hooks call beneath it."""
    own: dict[str, Any] = vars(module)
    found = [own["forward"]] if "forward" in own else []
    if getattr(getattr(own.get("forward"), "func", None), "__module__", None) == "accelerate.hooks":
        found.append(own.get(KEPT))
    return found or [*_of_class(type(module))]


def _of_class(cls: type) -> Iterator[Any]:
    """Its forward, and the one of a base where that is called by ``super()``."""
    for base in cls.__mro__:
        function = vars(base).get("forward")
        if function is not None:
            yield function
            if "super" not in getattr(getattr(function, "__code__", None), "co_names", ()):
                return


def _who(module: nn.Module) -> tuple[str, str]:
    """What stands in the way, and which advice there is."""
    own = vars(module)
    if KEPT in own:
        return f"accelerate keeps the forward of before the patch in {KEPT}", "kept forward"
    if "forward" in own:
        return f"a forward of its own, {_name(own['forward'])}, was put on this object", "own forward"
    cls = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return f"the forward of {cls.__name__} is {_name(vars(cls)['forward'])}", "class forward"


def _name(function: Any) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else type(function).__name__
