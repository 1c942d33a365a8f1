"""The training parity of ``tests/training`` under CUDA's autocast, on an emulated device (``emulated``)."""

import functools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from ..toys import LORA_VARIANTS, methods
from ..training.steps import Verdict, assert_parity
from . import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the emulated CUDA device needs a C++ compiler")

ROOT = Path(__file__).parents[2]
CHECKS = re.findall(r"^def (check_\w+)", Path(__file__).with_name("checks.py").read_text(), re.MULTILINE)
OTHERS = [f"{method}-{bits}" for method, bits in methods() if method != "LORA"]
KINDS = [f"{kind}-{method}-{bits}" for method, bits in methods() for kind in ("outside", "under", "option")]


@functools.cache
def verdicts(*groups):
    """All cases of these groups by group and test: a process of its own, where torch knows the device."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.cuda.cases", *groups]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = defaultdict(list)
    for line in run.stdout.splitlines():
        group, test, row = json.loads(line)
        found[group, test].append(Verdict(**row))
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_emulated_device_is_like_a_real_one(name):
    assert_parity(verdicts("emulator", "lora")["emulator", name])


@pytest.mark.parametrize("variant", [*LORA_VARIANTS, "head"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_training_step_of_lora_that_works_has_the_unpatched_bits(bits, variant):
    assert_parity(verdicts("emulator", "lora")["lora", f"LORA-{bits}-{variant}"])


@pytest.mark.parametrize("name", OTHERS)
def test_a_training_step_of_another_method_that_works_has_the_unpatched_bits(name):
    assert_parity(verdicts("others", "evaluation")["others", name])


@pytest.mark.parametrize("name", KINDS)
def test_an_evaluation_computes_what_training_computed_and_follows_the_option(name):
    # SHiRA outside of autocast never runs unpatched.
    assert_parity(verdicts("others", "evaluation")["evaluation", name], some_run=not name.startswith("outside-SHIRA"))
