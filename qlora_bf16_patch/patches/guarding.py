"""``guard``: a model is taken in that no patch has seen being built."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..engine.installation import Installation
from ..hosts.accelerate import KEPT
from ..hosts.given import expect_kbit_model
from . import boundary, tuners
from .injection import safely


def guard(model: nn.Module, installation: Callable[[str], Installation]) -> None:
    """Take ``model`` in for every patch that works on a model's own modules.

    Args:
        model: a model with bitsandbytes layers.
        installation: gives a patch's by its name.

    Raises:
        TypeError: it is no module.
        ValueError: it has none.
    """
    expect_kbit_model(model, "guard")
    for module in model.modules():
        if KEPT in module.__dict__:
            installation("bitsandbytes.linear4bit").rebind(module, KEPT)
    for name, take_in in (("peft.tuners", tuners.take_in), (boundary.NAME, boundary.take_in)):
        safely(take_in, model, installation(name))
