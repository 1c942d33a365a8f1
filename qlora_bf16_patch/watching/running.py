"""The watched call that is running, told to whatever runs inside of it."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

from .kinds import Kind


class _Here(threading.local):
    """The watched call that is running in this thread, if one is."""

    kind: Kind | None = None
    root: Any = None
    gradients = False  # whether it has any: a model may switch them off for a part, and so does a reentrant checkpoint
    readers: frozenset[Any] = frozenset()  # our forwards that have read a dtype which is not what it seems
    answers: Any = None  # the one of them that runs again, in which such a read is answered

    casts: tuple[Any, ...] = ()  # weak references to integers that have an attribute of ours until the call ends
    unchanged: Any = None  # says whether what runs again has changed nothing yet that it holds
    failed: Any = None  # what a forward has raised that is to run again


here = _Here()


def within_gradients() -> bool:
    """Whether the call is part of a watched one that has gradients, be they off at this place."""
    return not torch.compiler.is_compiling() and here.gradients


def has_compiled_parts(root: torch.nn.Module) -> bool:
    """Whether some of its modules, or functions that they hold, are compiled by themselves."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or any("_torchdynamo_orig_callable" in getattr(value, "__dict__", ()) for value in vars(module).values())
        for module in root.modules()
    )


def has_compiled(root: torch.nn.Module) -> bool:
    """Whether ``root`` may run as compiled code: parts of it are compiled, or some code in this process is."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return has_compiled_parts(root) or (dynamo is not None and bool(dynamo.counters.get("stats")))
