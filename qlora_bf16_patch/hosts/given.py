"""What calls that take a k-bit model say of anything else."""

from __future__ import annotations

import torch

from .bitsandbytes import is_kbit_model


def expect_kbit_model(model: object, call: str, verb: str | None = None) -> None:
    """Raise where a call was given what is no model with a quantized layer.

    Args:
        model: what it was given.
        call: its name.
        verb: what it does, where its name does not say so.

    Raises:
        TypeError: it is no module, but a Trainer or a name.
        ValueError: it has no such layer.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{call} takes a torch.nn.Module, and was given {type(model).__name__}: give the model itself, as "
            "trainer.model."
        )
    if not is_kbit_model(model):
        raise ValueError(
            f"{type(model).__name__} has no bitsandbytes 4- or 8-bit layer: there is nothing to {verb or call}. Give "
            "the model that was loaded with a BitsAndBytesConfig, or the one that PEFT has made of it."
        )
