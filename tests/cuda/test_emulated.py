"""The tests that ``make test`` runs on an emulated GPU as well; ``make cuda`` runs all that are for it."""

import functools

import pytest

from .. import devices
from . import build
from .selection import FILES, outcomes

pytestmark = [
    pytest.mark.skipif(devices.NAME != "cpu", reason="the tests are on another device already"),
    pytest.mark.skipif(build.compiler() is None, reason="the emulated CUDA device needs a C++ compiler"),
]

# Those that take long on the CPU, too, are left to `make cuda`: whole models, Dynamo, training in all combinations.
LONG = ["modules", "watching", "operations", "sweep_selection", "parity", "evaluation"]
SHORT = [file for file in FILES if not any(file.endswith(f"/test_{name}.py") for name in LONG)]


@functools.cache
def on_emulated():
    return outcomes("emulated", SHORT, "-k", "not compile and not half_precisions and not OfTransformers", minutes=20)


@pytest.mark.parametrize("file", SHORT)
def test_a_file_passes_on_an_emulated_gpu(file):
    outcome = on_emulated()[file]
    assert not outcome.failed
    assert outcome.passed
