"""``python -m tests.distributed.record [ENGINE...]``: what engines do on the releases installed here, as JSON files.

Without names it is all engines that are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ..versions.processes import about, last_line
from . import launch
from .engines import CHECKPOINTED, ENGINES, RAY, TRAINER
from .launch import RANKS, ROOT, Outcomes
from .page import RECORDS, file_of

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "wrapt")
# Engines that are packages of their own: what is imported, and what is installed.
PACKAGES = {
    "ZeRO-2": ("deepspeed", "deepspeed"),
    "ZeRO-3": ("deepspeed", "deepspeed"),
    "Fabric": ("lightning_fabric", "lightning-fabric"),
    RAY: ("ray", "ray"),
}
SAVED = ("state dict", "adapters", "shards")
COMPUTED = ("evaluation", "generation")


def main() -> int:
    parser = argparse.ArgumentParser(prog="record", description=__doc__)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join([TRAINER, *ENGINES]))
    names = parser.parse_args().engines or [name for name in (TRAINER, *ENGINES) if is_installed(name)]
    RECORDS.mkdir(exist_ok=True)
    for group in groups(names):
        runs = [run for name in group for run in runs_of(name)]
        off, on = (outcomes(runs, patched) for patched in (False, True))
        for name in group:
            found = {run: compared(off[run], on[run]) for run in runs_of(name)}
            file_of(name).write_text(json.dumps(record(name, found), indent=1) + "\n")
            print(name, json.dumps(found), flush=True)
    return 0


def record(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "engine": name,
        **about(*LIBRARIES, *PACKAGES.get(name, ())[1:]),
        "commit": commit(),
        "ranks": RANKS,
        "runs": runs,
    }


def groups(names: list[str]) -> Iterator[list[str]]:
    """Those that may share processes: engines of one package."""
    by_package = defaultdict(list)
    for name in names:
        starts_them_itself = name in (TRAINER, RAY)
        by_package[name if starts_them_itself else PACKAGES.get(name, ("torch",))[0]].append(name)
    yield from by_package.values()


def runs_of(name: str) -> list[str]:
    return [name] if name == TRAINER else [name, name + CHECKPOINTED]


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES.get(name, ("torch",))[0]) is not None


def commit() -> str:
    """What is checked out, with a plus where the package or the scenarios differ from it."""
    head = _git("rev-parse", "--short", "HEAD")
    return head + "+" if _git("status", "--porcelain", "qlora_bf16_patch", "tests/distributed") else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def outcomes(runs: list[str], patched: bool) -> dict[str, Outcomes]:
    if runs[0] == TRAINER or runs[0].startswith(RAY):
        return {run: launch.launched(run, patched) for run in runs}
    return launch.outcomes(runs, patched, seconds=240)


def compared(off: Outcomes, on: Outcomes) -> dict[str, Any]:
    """A run without and with the shim: what fails, and what is the same bits."""
    if failed := [one[0]["raised"] for one in (off, on) if "raised" in one[0]]:
        return {"raised": last_line(failed[0])}
    first, second = on
    both = ("state dict", "adapters", *COMPUTED)
    return {
        "without": {what: said(off, what) for what in COMPUTED},
        "with": {what: said(on, what) for what in COMPUTED},
        "the same without and with": {
            what: all(one[what] == other[what] for one, other in zip(off, on, strict=True))
            for what in ("losses", *SAVED)
        },
        "the same on both ranks": {what: first[what] == second[what] for what in both if what in first},
        "unchanged by evaluation and generation": all(one.get("unchanged", True) for one in on),
        "losses": [one["losses"] for one in on],
        "entries of the state dict": first["entries"],
        "hashes": {what: [one[what] for one in on] for what in SAVED},
    }


def said(found: Outcomes, what: str) -> str:
    """What came of an evaluation or a generation on all ranks: ``runs``, or the error."""
    told = {one[what].get("error", "runs") if what in one else "under autocast" for one in found}
    return " / ".join(sorted(told))


if __name__ == "__main__":
    sys.exit(main())
