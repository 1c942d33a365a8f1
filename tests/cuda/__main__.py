"""Runs the tests that are for CUDA, and writes what came of them: ``python -m tests.cuda [emulated|cuda] [files]``."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from itertools import starmap

from .. import pages
from ..versions.processes import ROOT
from .selection import FILES, Outcome, outcomes

LIBRARIES = ("torch", "bitsandbytes", "peft", "transformers", "accelerate", "diffusers")


def page(device: str, found: dict[str, Outcome]) -> str:
    kind = "an emulated GPU" if device == "emulated" else "a GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        f"# The tests on {kind}",
        "",
        f"<!-- Written by `python -m tests.cuda {device}`. -->",
        "",
        f"Python {platform.python_version()}, {versions}. What it can tell and what it cannot: [cuda.md](cuda.md).",
        "",
        *pages.table(("tests", "passed", "failed", "skipped"), starmap(cells, found.items())),
        "",
    ]
    for file, outcome in found.items():
        lines += [f"- `{file}`, skipped {n}: {reason}" for reason, n in outcome.skipped.items()]
        lines += [f"- `{file}`, **failed** `{name}`: {message}" for name, message in outcome.failed.items()]
    return "\n".join(lines) + "\n"


def cells(file: str, outcome: Outcome) -> list[str]:
    return [f"`{file}`", str(outcome.passed), str(len(outcome.failed)), str(outcome.skipped.total())]


def main() -> int:
    device, *files = sys.argv[1:] or ["emulated"]
    found: dict[str, Outcome] = {}
    written = ROOT / "docs" / f"cuda-{'emulated' if device == 'emulated' else 'gpu'}.md"
    for file in files or FILES:
        found |= outcomes(device, [file], minutes=120)
        if not files:
            written.write_text(page(device, found))
        print(f"{file}: {found[file].passed} passed, {len(found[file].failed)} failed", flush=True)
    return any(outcome.failed for outcome in found.values())


if __name__ == "__main__":
    sys.exit(main())
