"""The patches' states, and which of them mean that the shim does not work."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from .. import status
from ..patches import CATALOGUE

Row = dict[str, Any]
"""A :class:`qlora_bf16_patch.Status` as a dict, which goes through JSON."""


def rows() -> list[Row]:
    """Those of this process as it is."""
    return [dataclasses.asdict(row) for row in status()]


def with_everything_imported(tell: Callable[[str], None] = lambda what: None) -> list[Row]:
    """Those with every library imported, as a script would; a broken one is a reason, not a crash.

    Args:
        tell: is told what is being imported.
    """
    absent = {}
    for patch in CATALOGUE:
        tell(f"importing {patch.module}")
        try:
            importlib.import_module(patch.module)
        except Exception as error:
            absent[patch.name] = f"{patch.module} cannot be imported: {type(error).__name__}: {error}"
    found = rows()
    for row in found:
        if row["state"] == "pending" and row["name"] in absent:
            row["state"], row["reason"] = "failed", absent[row["name"]]
    return found


def problems(found: Iterable[Row], fine: tuple[str, ...] = ("active", "off")) -> list[str]:
    """A sentence for each reason why patches do not work as they were switched.

    Args:
        found: the rows of a process.
        fine: the states that need no sentence.
    """
    found = list(found)
    if found and all(row["state"] == "off" for row in found):
        deciders = ", ".join(dict.fromkeys(row["decided_by"] for row in found if row["decided_by"] != "default"))
        return [f"every patch is switched off{f', by {deciders}' if deciders else ''}: nothing is mended"]
    return [f"{row['name']} is {row['state']}: {row['reason']}" for row in found if row["state"] not in fine]
