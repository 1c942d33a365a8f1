"""Tests, counted: how many passed, failed and were skipped, and why."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .processes import last_line, run, told

# Older releases warn under a newer library: these warnings are no errors, as they are in `make test`.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=default")


def counted(*arguments: str, minutes: float = 20, **environ: str) -> dict[str, Any]:
    """Of pytest with these arguments how many tests passed, failed and were skipped; of the latter two the reasons."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        result = run("-m", "pytest", *OPTIONS, f"--junitxml={report}", *arguments, minutes=minutes, **environ)
        if not report.exists():
            return {"error": last_line(result.stderr or result.stdout)}
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
    reasons: Counter[tuple[str, str, str]] = Counter()
    for case in cases:
        kind, message = verdict(case)
        found[kind] += 1
        if kind != "passed":
            reasons[kind, case.get("name", "").partition("[")[0], message] += 1
    for kind in ("failed", "skipped"):
        if listed := [
            {"test": name, "cases": cases, "reason": reason}
            for (one, name, reason), cases in reasons.most_common()
            if one == kind
        ]:
            found[f"what {'failed' if kind == 'failed' else 'was skipped'}"] = listed
    return found


def verdict(case: ElementTree.Element) -> tuple[str, str]:
    """What became of a test, and why."""
    for tag, kind in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (element := case.find(tag)) is not None:
            message = element.get("message", "")
            if "collection failure" in message and element.text:
                errors = re.findall(r"^E\s+(.*)", element.text, re.MULTILINE)
                message = errors[-1] if errors else message
            return kind, told(message)
    return "passed", ""
