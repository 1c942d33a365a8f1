"""The layer contracts' tests, counted."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .older import before
from .processes import last_line, run, told

TESTS = (
    *(f"tests/patches/test_{name}.py" for name in ("linear4bit", "linear8bit", "lora", "boundary", "modules")),
    "tests/training/test_parity.py",
    "tests/recipes/test_older_transformers.py",
)
# Older releases warn under a newer torch: these warnings are no errors, as they are in `make test`.
OPTIONS = (
    "-q",
    "-p",
    "tests.versions.older",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=",
    "-o",
    "filterwarnings=default",
)


def contracts(names: Collection[str] | None = None) -> dict[str, Any]:
    """By file, how many tests passed, failed and were skipped; and of the latter two the tests with their reasons."""
    files = {Path(file).stem.removeprefix("test_"): file for file in TESTS}
    # Without kernels for 8 bits, see reference.py: test_linear8bit.py, and test_parity.py's of LORA-8-... and the like
    no8 = ("-k", "not 8bit and not -8- and not -8]") if before("bitsandbytes", "0.46") else ()
    return {name: counted(file, *no8) for name, file in files.items() if names is None or name in names}


def counted(file: str, *options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        result = run("-m", "pytest", *OPTIONS, f"--junitxml={report}", *options, file, minutes=20)
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
