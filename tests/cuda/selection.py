"""Which tests are run on CUDA, and what came of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..versions.counting import cases

# Contracts A to D, what users report, PEFT's methods, training's parity, and the sweep's selection.
FILES = [
    "tests/cuda/test_device.py",
    *(f"tests/patches/test_{name}.py" for name in ("linear4bit", "linear8bit", "lora", "tuners", "boundary")),
    *(f"tests/patches/test_{name}.py" for name in ("attention", "autocast_output", "checkpointing", "generate")),
    *(f"tests/patches/test_{name}.py" for name in ("modules", "packed_weights", "run_again", "watching")),
    *(f"tests/numerics/test_{name}.py" for name in ("mode", "operations")),
    *(f"tests/recipes/test_{name}.py" for name in ("late", "sweep_selection")),
    *(f"tests/training/test_{name}.py" for name in ("parity", "evaluation", "options")),
]
ON_A_GPU = ["tests/patches/test_gpu.py"]


@dataclass
class Outcome:
    """Of one file: how many tests passed, and which failed or were skipped, with reasons."""

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def outcomes(device: str, tests: list[str], *options: str, minutes: float = 60) -> dict[str, Outcome]:
    """What came of these tests, by file, on a device (see ``toys/devices.py``), in a process of their own."""
    found = {file.partition("::")[0]: Outcome() for file in tests}
    # No branches are counted there: these tests are run on the CPU as well.
    for case in cases(*options, *tests, minutes=minutes, TEST_DEVICE=device, COVERAGE_PROCESS_CONFIG=""):
        outcome = found[case.module.replace(".", "/") + ".py"]
        outcome.passed += case.kind == "passed"
        if case.kind == "failed":
            outcome.failed[case.name] = case.reason
        if case.kind == "skipped":
            outcome.skipped[case.reason] += 1
    return found
