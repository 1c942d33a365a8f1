"""In each process of a program that ``doctor`` has started: what the shim did there, left for ``doctor`` to collect."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..at_end import count
from .rows import rows
from .strangers import over_ours, strangers


def started(folder: str) -> None:
    """Leave word at the start, since a process that a signal ends does not come to its end, and at the end."""
    _leave(folder, {"ended": False})
    atexit.unregister(_ended)  # two threads may import their first library at once
    atexit.register(_ended, folder)


def _ended(folder: str) -> None:
    try:
        _leave(folder, {"ended": True, **_found()})
    except Exception as error:  # the program is not to hear of it
        _leave(folder, {"ended": True, "failure": f"{type(error).__name__}: {error}"})


def _found() -> dict[str, Any]:
    return {
        "patches": rows(),
        "models": count("numerics.training", "taken_in"),
        "modules_cast": count("watching.events", "modules_cast"),
        "strangers": [*strangers(), *over_ours()],
        **_error(),
    }


def _error() -> dict[str, Any]:
    """The exception that ended the process, if one did: Python keeps it."""
    error = getattr(sys, "last_value", None)
    if not isinstance(error, Exception):
        return {"error": None, "of_dtypes": False}
    refusals: Any = sys.modules.get("qlora_bf16_patch.watching.refusals")
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return {"error": text, "of_dtypes": bool(refusals and refusals.is_of_dtypes(error))}


def _leave(folder: str, what: dict[str, Any]) -> None:
    """Whole or not at all: another process may be reading."""
    what = {"pid": os.getpid(), "command": sys.orig_argv, "python": sys.executable, **what}
    place = Path(folder, f"{os.getpid()}.json")
    try:
        place.with_suffix(".new").write_text(json.dumps(what))
        place.with_suffix(".new").replace(place)
    except OSError:  # doctor has gone, and its folder with it
        return
