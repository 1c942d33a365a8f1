"""The tests that ``make test`` runs on an emulated GPU as well; ``make cuda`` runs all that are for it."""

import functools

import pytest

from emulated_cuda import build
from toys import devices

from .selection import FILES, outcomes

pytestmark = [
    pytest.mark.skipif(devices.NAME != "cpu", reason="the tests are on another device already"),
    pytest.mark.skipif(build.compiler() is None, reason="the emulated CUDA device needs a C++ compiler"),
]

# What takes long on the CPU, too, is left to `make cuda`: whole models, Dynamo, training in all combinations.
LONG = [f"test_{name}.py" for name in ("modules", "watching", "operations", "sweep_selection", "parity", "evaluation")]
SHORT = [file for file in FILES if file.rpartition("/")[2] not in LONG]
UNTIMELY = " and ".join(
    f"not {name}"
    for name in (
        "compiled_equals",
        "half_precisions",
        "OfTransformers",
        "backward_runs",
        "floating_as_well",
        "graph_break",
    )
)
PARITY, MODULES = "tests/training/test_parity.py", "tests/patches/test_modules.py"
STEPS = [
    *(f"test_a_training_step_of_lora_that_works_has_the_unpatched_bits[LORA-{case}]" for case in ("4-DoRA", "8-plain")),
    *(
        f"test_a_training_step_of_another_method_that_works_has_the_unpatched_bits[{case}]"
        for case in ("VERA-4", "IA3-8")
    ),
    "test_a_step_with_a_float32_norm_and_a_bf16_head_is_mended_where_it_fails_and_nowhere_else[LORA-4]",
]
# CUDA's autocast casts other operations than the CPU's, and compiled code has to know it.
CASTS = "test_what_torch_refuses_is_computed_as_in_float32"
COMPILED = [f"{name}-training-autocast-compiled" for name in ("Scattered", "Bilinear", "NormOfItsOwn")]


@functools.cache
def on_an_emulated_gpu():
    chosen = [f"{PARITY}::{step}" for step in STEPS] + [f"{MODULES}::{CASTS}[{case}]" for case in COMPILED]
    return outcomes("emulated", [*SHORT, *chosen], "-k", UNTIMELY, minutes=20)


@pytest.mark.parametrize("file", [*SHORT, PARITY, MODULES])
def test_what_a_file_holds_is_so_on_an_emulated_gpu(file):
    outcome = on_an_emulated_gpu()[file]
    assert not outcome.failed
    assert outcome.passed
