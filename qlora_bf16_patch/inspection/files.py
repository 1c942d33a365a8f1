"""What ``Trace.to_json`` and ``Report.to_json`` have written, read without knowing which of them it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .report import Report
from .trace import Trace

WRITERS = "Trace.to_json, Report.to_json and `qlora-bf16-patch run --trace` write one."
KINDS: dict[str, type[Trace] | type[Report]] = {kind.FORMAT: kind for kind in (Trace, Report)}


def read(file: str | Path) -> Trace | Report:
    """A trace, or a report.

    Raises:
        ValueError: it is neither.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        found = json.loads(Path(file).read_text())
        what: Any = found.get("format") if isinstance(found, dict) else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is neither a trace nor a report: it is no JSON ({error}). {WRITERS}") from error
    kind = KINDS.get(what) if isinstance(what, str) else None
    if kind is None:
        written = f"its format is {what!r}" if what else "it has no format"
        raise ValueError(f"{file} is neither a trace nor a report: {written}. {WRITERS}")
    return kind.of(found, str(file))
