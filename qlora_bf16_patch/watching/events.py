"""What was cast, as a record that log, strict mode and status read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

# What an operand is called in a message, by the name that torch's signature gives it.
_SPOKEN = {"attn_mask": "attention mask", "end": "end", "input": "input"}


@dataclasses.dataclass(frozen=True)
class Cast:
    """One cast at one place; it is kept once, however often it happens.

    Attributes:
        path: the innermost module's, in the model that is watched.
        module: its class.
        operation: torch's name of the operation.
        operand: which of its operands was cast.
        given: dtype of the operand.
        to: dtype that it was cast to.
    """

    path: str
    module: str
    operation: str
    operand: str
    given: torch.dtype
    to: torch.dtype

    def __str__(self) -> str:
        if self.operation == "linear" and self.operand == "input":
            return f"{self.path}: {self.given} hidden states are cast to its {self.to} weights"
        return f"{self.path}: {self.operation} has its {self.operand} cast from {self.given} to {self.to}"

    def refusal(self, patch: str) -> str:
        """What strict mode raises."""
        return (
            f"{self.path} ({self.module}): {self.operation} computes in {self.to} and was given "
            f"{self.given} as its {self.operand}. {patch} would have cast it, but QLORA_BF16_PATCH_STRICT is set: "
            "cast it where it is made, or unset it."
        )


def name_of(func: Any) -> str:
    """An operation's name as a reader knows it."""
    name = getattr(func, "__name__", None) or repr(func)
    return {"__setitem__": "index_put", "__matmul__": "matmul", "__rmatmul__": "matmul"}.get(name, name)


def spoken(operand: str) -> str:
    return _SPOKEN.get(operand, operand)
