"""``guard``: a model is registered that no patch has seen being built."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from ..engine.binding import KEPT
from ..engine.installation import Installation
from ..hosts.given import expect_kbit_model
from . import boundary, tuners
from .injection import safely


def guard(model: nn.Module, installation: Callable[[str], Installation]) -> None:
    """Register ``model`` with every patch that works on a model's own modules.

    Args:
        model: a model with bitsandbytes layers.
        installation: gives a patch's by its name.

    Raises:
        TypeError: it is no module.
        ValueError: it has none.
    """
    expect_kbit_model(model, "guard")
    for module in model.modules():
        if KEPT in vars(module):
            installation("bitsandbytes.linear4bit").rebind(module)
    # Also over a forward that somebody has set on an instance since the model was registered.
    safely(tuners.take_in, model, installation("peft.tuners"))
    safely(functools.partial(boundary.take_in, again=True), model, installation(boundary.NAME))
