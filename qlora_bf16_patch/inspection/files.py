"""What ``Trace.to_json`` and ``Report.to_json`` have written, read without knowing which of them it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import report, trace
from .report import Report
from .trace import Trace

WRITERS = "Trace.to_json, Report.to_json and `qlora-bf16-patch run --trace` write one."
READERS: dict[str, Any] = {trace.FORMAT: Trace.from_json, report.FORMAT: Report.from_json}


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
    reader = READERS.get(what) if isinstance(what, str) else None
    if reader is None:
        written = f"its format is {what!r}" if what else "it has no format"
        raise ValueError(f"{file} is neither a trace nor a report: {written}. {WRITERS}")
    result: Trace | Report = reader(Path(file))
    return result
