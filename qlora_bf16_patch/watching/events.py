"""What was cast, as a record that log, strict mode and status read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

# What an operand or an operation is called in a message, where torch's own name would not be understood.
_OPERANDS = {"attn_mask": "attention mask"}
_OPERATIONS = {"__setitem__": "index_put", "__matmul__": "matmul", "__rmatmul__": "matmul"}


READ = "dtype"  # the operation's name where a packed weight's dtype is read


class CastRefused(TypeError):
    """Strict mode: an operand would have been cast."""


@dataclasses.dataclass(frozen=True)
class Cast:
    """One cast at one place; it is kept once, however often and in whatever kinds of call it happens.

    Attributes:
        path: the innermost module's, in the model that is watched.
        module: its class.
        operation: torch's name of the operation.
        operand: which of its operands was cast.
        given: dtype of the operand.
        to: dtype that it was cast to.
        patch: the patch that cast it.
        kind: the kind of call in which it was seen first, in words.
    """

    path: str
    module: str
    operation: str
    operand: str
    given: torch.dtype
    to: torch.dtype
    patch: str
    kind: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.path}: {self._what()}"

    def _what(self) -> str:
        if self.operand == "packed weight":
            if self.operation == READ:
                return f"reads a packed weight's dtype, and is told {self.to} instead of its storage, {self.given}"
            if self.given == self.to:
                return "a frozen packed weight is not clamped in place"
            return f"a packed weight is dequantized to {self.to} before {self.operation}"
        if self.operation == "linear" and self.operand == "input":
            return f"{self.given} hidden states are cast to its {self.to} weights"
        return f"{self.operation} has its {self.operand} cast from {self.given} to {self.to}"

    def refusal(self) -> str:
        """What strict mode raises."""
        if self.operand == "packed weight":
            what = f"{self._what()} by {self.patch}"
        else:
            what = (
                f"{self.operation} computes in {self.to} and was given {self.given} as its {self.operand}. "
                f"{self.patch} would have cast it"
            )
        return (
            f"{self.path} ({self.module}): {what}, but QLORA_BF16_PATCH_STRICT is set: cast it where it is made, or "
            "unset it."
        )


def name_of(func: Any) -> str:
    """An operation's name as a reader knows it."""
    name = func if isinstance(func, str) else getattr(func, "__name__", None) or repr(func)
    return _OPERATIONS.get(name, name)


def spoken(operand: str) -> str:
    return _OPERANDS.get(operand, operand)
