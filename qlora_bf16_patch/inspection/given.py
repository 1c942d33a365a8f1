"""What ``trace``, ``report`` and ``assert_dtypes`` are given."""

from __future__ import annotations

import torch


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
