"""Calls of a traced model that have not returned, and the phase that they are of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Call(NamedTuple):
    """A module's.

    Attributes:
        path: the module's.
        inputs: dtypes of its floating arguments.
        autocast: dtype of the region around it.
        handled: id of the error that is being handled around it.
    """

    path: str
    inputs: tuple[str, ...]
    autocast: str | None
    handled: int


class Here(threading.local):
    """What is running in this thread.

    Attributes:
        running: the innermost call last.
        phase: of the outermost one.
        generating: how many ``generate`` there are around it.
    """

    def __init__(self) -> None:
        self.running: list[Call] = []
        self.phase = ""
        self.generating = 0

    def __reduce__(self) -> tuple[type[Here], tuple[()]]:
        """A copy or pickle of a trace has calls of its own."""
        return type(self), ()

    def phase_of(self, module: torch.nn.Module) -> str:
        """The phase of a call of ``module`` that no other one is around."""
        if self.generating:
            return "generation"
        return "training" if module.training and torch.is_grad_enabled() else "evaluation"

    @contextlib.contextmanager
    def generation(self) -> Iterator[None]:
        """Around a ``generate``, which may be called inside of a forward."""
        running, phase = self.running, self.phase
        self.running, self.generating = [], self.generating + 1
        try:
            yield
        finally:
            self.running, self.phase, self.generating = running, phase, self.generating - 1
