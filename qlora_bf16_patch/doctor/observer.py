"""What ``doctor`` looks at in a process of its own, where a crash is an answer and the user's environment counts."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .. import _registry
from ..engine.versions import installed
from .machine import machine
from .needed import answers, can_go, sentence
from .packages import packages
from .reported import reported
from .rows import with_everything_imported
from .strangers import over_ours, strangers


def needed() -> dict[str, Any]:
    """For each patch with promises what came of them, and that in words."""
    found: dict[str, Any] = {}
    for patch in _registry.patches():
        if patch.promises:
            try:
                asked = answers(patch)
            except Exception as error:  # its library, or the toys', cannot be imported
                found[patch.name] = {"sentence": f"could not be asked here: {error}", "can_go": "", "answers": []}
                continue
            version = installed(patch.distribution)
            found[patch.name] = {
                "sentence": sentence(patch, version, asked),
                "can_go": can_go(patch, version, asked),
                "answers": [dataclasses.asdict(answer) for answer in asked],
            }
    return found


# In this order: what is looked at first is as in a fresh process.
STAGES: dict[str, Callable[[], Any]] = {
    "patches": with_everything_imported,
    "strangers": lambda: [*strangers(), *over_ours()],
    "machine": machine,
    "packages": packages,
    "needed": needed,
    "selftest": reported,
}


def main() -> None:
    """Write a line of JSON before each stage and one after it, to a standard output that is nobody else's."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what libraries print
        for name, look in STAGES.items():
            _write(out, {"stage": name})
            try:
                _write(out, {"stage": name, "found": look()})
            except Exception as error:
                _write(out, {"stage": name, "error": f"{type(error).__name__}: {error}"})
    sys.stdout.flush()


def _write(out: Any, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()
