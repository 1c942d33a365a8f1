"""What ``trace``, ``report`` and ``assert_dtypes`` are given."""

from __future__ import annotations

import torch

from ..hosts.bitsandbytes import is_kbit_model


def expect_module(model: object, call: str) -> None:
    """Raise where ``call`` was given something else, as a Trainer or a name.

    Raises:
        TypeError: it says what it was given.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{call} takes a torch.nn.Module, and was given {type(model).__name__}: give the model itself, as "
            "trainer.model."
        )


def expect_kbit_model(model: torch.nn.Module, call: str) -> None:
    """Raise where ``call`` was given what has no quantized layer.

    Raises:
        TypeError: it is no module.
        ValueError: it has no such layer.
    """
    expect_module(model, call)
    if not is_kbit_model(model):
        raise ValueError(
            f"{type(model).__name__} has no bitsandbytes 4- or 8-bit layer: there is nothing to {call}. Give the model "
            "that was loaded with a BitsAndBytesConfig, or the one that PEFT has made of it."
        )
