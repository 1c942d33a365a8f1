"""k-bit models under FSDP and ZeRO-3, on one rank of gloo."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NAMES = ["fsdp2 doge", "fsdp2 gemma3n", "fsdp1 injected", "fsdp1 guarded", "zero3", "storage uint8", "storage bfloat16"]


@functools.cache
def results():
    """What each scenario found, by its name; one process for all, since its imports take longer than it."""
    names = [*NAMES, "deepspeed zero3"] if DEEPSPEED else NAMES
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.scenarios", *names]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines() if line.startswith("["))


def result(name):
    found = results()[name]
    assert "raised" not in found, found
    return found


@pytest.mark.parametrize("name", ["fsdp2 doge", "fsdp2 gemma3n"])
def test_a_checkpointed_model_under_fsdp2_trains_to_the_bit_as_unpatched(name):
    found = result(name)
    assert found["patched"] == found["unpatched"] == found["alone"]
    assert found["patched"][1] != found["patched"][0]


def test_a_model_under_fsdp2_whose_head_is_given_another_dtype_evaluates_outside_of_autocast():
    found = result("fsdp2 doge")
    assert "dtype" in found["evaluation unpatched"]
    assert found["evaluation patched"] == "torch.float32"


@pytest.mark.parametrize(
    "name",
    [
        "fsdp1 injected",
        "fsdp1 guarded",
        "zero3",
        pytest.param("deepspeed zero3", marks=pytest.mark.skipif(not DEEPSPEED, reason="deepspeed is not installed")),
    ],
)
def test_a_router_is_mended_whose_weight_is_flattened_or_partitioned(name):
    found = result(name)
    assert "same dtype" in found["unpatched"]
    assert found["patched"] == "torch.float32"


def test_a_clamped_4_bit_weight_is_a_matrix_in_any_storage_and_stays_as_it_is():
    as_bytes, as_bfloat16 = result("storage uint8"), result("storage bfloat16")
    assert (as_bytes["dtypes"], as_bfloat16["dtypes"]) == (["torch.uint8"], ["torch.bfloat16"])
    assert as_bytes["losses"] == as_bfloat16["losses"]
    assert as_bytes["unchanged"] and as_bfloat16["unchanged"]
    assert as_bytes["clamped"] == as_bfloat16["clamped"] == 4
