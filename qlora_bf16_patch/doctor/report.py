"""All that ``doctor`` tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .. import __version__
from . import clashes
from .child import LIMIT, observed
from .verdict import Report, problems


def report(tell: Callable[[str], None], program: dict[str, Any] | None = None, limit: float = LIMIT) -> Report:
    """Look at everything, in a process of its own.

    Args:
        tell: is told what is being looked at.
        program: what came of a program, where one was asked for: its processes' patches count then.
        limit: seconds for the process.
    """
    found = observed(tell, limit)
    versions = {one["name"]: one["version"] for one in found.get("packages", ())}
    has_gpu = bool(found.get("machine", {}).get("gpus"))
    known = [dataclasses.asdict(clash) for clash in clashes.found(versions, has_gpu)]
    whole: Report = {"version": __version__, **found, "clashes": known}
    if program is not None:
        whole["program"] = program
    wrong = problems(whole)
    return {"works": not wrong, "problems": wrong, **whole}
