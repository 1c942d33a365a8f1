"""Which tests are run on CUDA, and what came of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
# Contracts A to D, the rows of the README's table, PEFT's methods, training's parity, and the sweep's selection.
FILES = [
    "tests/cuda/test_device.py",
    *(f"tests/patches/test_{name}.py" for name in ("linear4bit", "linear8bit", "lora", "tuners", "boundary")),
    *(f"tests/patches/test_{name}.py" for name in ("attention", "autocast_output", "checkpointing", "generate")),
    *(f"tests/patches/test_{name}.py" for name in ("modules", "packed_weights", "run_again", "watching")),
    *(f"tests/numerics/test_{name}.py" for name in ("mode", "operations")),
    *(f"tests/recipes/test_{name}.py" for name in ("failures", "late", "sweep_selection")),
    *(f"tests/training/test_{name}.py" for name in ("parity", "evaluation", "options")),
]


@dataclass
class Outcome:
    """Of one file: how many tests passed, and which failed or were skipped, with reasons."""

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def outcomes(device: str, tests: list[str], *options: str, minutes: float = 60) -> dict[str, Outcome]:
    """What came of these tests, by file, on a device (see ``tests/devices.py``), in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options]
        run = subprocess.run(
            [*command, *tests],
            cwd=ROOT,
            env=os.environ | {"TEST_DEVICE": device},
            capture_output=True,
            text=True,
            timeout=60 * minutes,
        )
        assert report.exists(), run.stdout[-2000:] + run.stderr[-2000:]
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    found = {file.partition("::")[0]: Outcome() for file in tests}
    for case in cases:
        # A file that can't be imported is a case without a class.
        module = case.get("classname") or case.get("name", "")
        _count(case, found[module.replace(".", "/") + ".py"])
    return found


def _count(case: ElementTree.Element, outcome: Outcome) -> None:
    for tag in ("failure", "error"):
        if (told := case.find(tag)) is not None:
            outcome.failed[case.get("name", "")] = " ".join(told.get("message", "").split())[:200]
            return
    if (told := case.find("skipped")) is not None:
        outcome.skipped[told.get("message", "")] += 1
    else:
        outcome.passed += 1
