"""Tests, counted: how many passed, failed and were skipped, and why."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from .processes import last_line, run, told

# Older releases warn under a newer library: these warnings are no errors, as they are in `make test`.
OPTIONS = ("-o", "addopts=", "-o", "filterwarnings=default")


class Case(NamedTuple):
    """A test that was run.

    Attributes:
        module: its file, as pytest names the module; a file that can't be imported is a case of its own.
        name: with its parameters.
        kind: ``passed``, ``failed`` or ``skipped``.
        reason: of the latter two.
    """

    module: str
    name: str
    kind: str
    reason: str


def cases(*arguments: str, minutes: float, **environ: str) -> list[Case]:
    """What pytest did with these arguments, in a process of its own.

    Raises:
        RuntimeError: it came to no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments)
        result = run(*command, minutes=minutes, **environ)
        if not report.exists():
            raise RuntimeError(last_line(result.stderr or result.stdout))
        found = list(ElementTree.parse(report).getroot().iter("testcase"))
    return [Case(one.get("classname") or one.get("name", ""), one.get("name", ""), *verdict(one)) for one in found]


def counted(*arguments: str, minutes: float = 20, **environ: str) -> dict[str, Any]:
    """Of pytest with these arguments how many tests passed, failed and were skipped; of the latter two the reasons."""
    try:
        ran = cases(*OPTIONS, *arguments, minutes=minutes, **environ)
    except RuntimeError as error:
        return {"error": str(error)}
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
    reasons: Counter[tuple[str, str, str]] = Counter()
    for case in ran:
        found[case.kind] += 1
        if case.kind != "passed":
            reasons[case.kind, case.name.partition("[")[0], case.reason] += 1
    for kind in ("failed", "skipped"):
        if listed := [
            {"test": name, "cases": count, "reason": reason}
            for (one, name, reason), count in reasons.most_common()
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
