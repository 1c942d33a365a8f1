"""Runs the tests that are for CUDA, and writes what came of them: ``python -m tests.cuda [emulated|cuda]``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from importlib.metadata import version
from itertools import starmap

import torch

from .. import pages
from ..versions.counting import OPTIONS
from ..versions.processes import ROOT
from .selection import FILES, ON_A_GPU, Outcome, outcomes

LIBRARIES = ("torch", "bitsandbytes", "peft", "transformers", "accelerate", "diffusers")


def page(device: str, found: dict[str, Outcome]) -> str:
    kind = "an emulated GPU" if device == "emulated" else "a GPU"
    gpu = "" if device == "emulated" else f"{torch.cuda.get_device_name()}, "
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        f"# The tests on {kind}",
        "",
        f"<!-- Written by `python -m tests.cuda {device}`. -->",
        "",
        f"{gpu}Python {platform.python_version()}, {versions}.",
        "What it can tell and what it cannot: [cuda.md](cuda.md).",
        "",
        *pages.table(("tests", "passed", "failed", "skipped"), starmap(cells, found.items())),
        "",
    ]
    for file, outcome in found.items():
        lines += [f"- `{file}`, skipped {n}: {reason}" for reason, n in outcome.skipped.items()]
        failed = Counter(outcome.failed.values())
        lines += [f"- `{file}`, **failed** {n}: {message}" for message, n in failed.most_common()]
    return "\n".join(lines) + "\n"


def cells(file: str, outcome: Outcome) -> list[str]:
    return [f"`{file}`", str(outcome.passed), str(len(outcome.failed)), str(outcome.skipped.total())]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda", description=__doc__)
    parser.add_argument("device", nargs="?", default="emulated", choices=("emulated", "cuda"))
    parser.add_argument("files", nargs="*", help="these alone, and nothing is written")
    parser.add_argument("--workers", help="processes that share the tests, by pytest-xdist")
    options = parser.parse_args()
    files = options.files or [*FILES, *(ON_A_GPU if options.device == "cuda" else [])]
    # A GPU comes with other libraries than those of `make test`, which may warn of one another.
    extra = list(OPTIONS) if options.device == "cuda" else []
    extra += ["-n", options.workers] if options.workers else []
    found = outcomes(options.device, files, *extra, minutes=120)
    if not options.files:
        name = "emulated" if options.device == "emulated" else "gpu"
        (ROOT / "docs" / f"cuda-{name}.md").write_text(page(options.device, found))
    for file, outcome in found.items():
        print(f"{file}: {outcome.passed} passed, {len(outcome.failed)} failed", *outcome.failed, sep="\n    ")
    return any(outcome.failed for outcome in found.values())


if __name__ == "__main__":
    sys.exit(main())
