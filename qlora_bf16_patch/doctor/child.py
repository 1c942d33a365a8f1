"""The process in which :mod:`.observer` looks, seen from the one that waits for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

LIMIT = 600.0  # seconds; importing torch from a network drive takes minutes


def observed(tell: Callable[[str], None], limit: float = LIMIT) -> dict[str, Any]:
    """What each stage found.

    Args:
        tell: is told each stage's name as it begins.
        limit: seconds after which the process is ended.

    Returns:
        For each stage what it found; those that failed have a sentence in ``"failures"``.
    """
    report: dict[str, Any] = {"failures": []}
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__package__} import observer; observer.main()"
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            stage = _followed(process, report, tell)
        finally:
            timer.cancel()
            process.kill()  # nothing to one that has ended
        if process.returncode:
            said.seek(0)
            report["failures"].append(_ended(process.returncode, stage, said.read().decode(errors="replace"), limit))
    return report


def _followed(process: subprocess.Popen[str], report: dict[str, Any], tell: Callable[[str], None]) -> str:
    """The stage that it came to."""
    stage = "start"
    for line in process.stdout or ():
        if not line.startswith('{"stage": '):  # a sitecustomize's, which prints before the observer is there
            continue
        found = json.loads(line)
        if "found" in found:
            report[found["stage"]] = found["found"]
        elif "error" in found:
            report["failures"].append(f"{found['stage']}: {found['error']}")
        else:
            stage = found["stage"]
            tell(stage)
    process.wait()
    return stage


def _ended(status: int, stage: str, said: str, limit: float) -> str:
    how = f"ended with status {status}"
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
        how += f" (the limit is {limit:.0f} s)" if -status == signal.SIGKILL else ""
    last = [line for line in said.splitlines() if line.strip()][-3:]
    return f"{stage}: the process that tries it {how}: {' / '.join(last) or 'it said nothing'}"
