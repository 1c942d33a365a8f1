"""What upstream does by itself is what the catalogue says, and a mended upstream is heard of: "can go"."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_bf16_patch.doctor import needed
from qlora_bf16_patch.doctor.needed import Answer, can_go
from qlora_bf16_patch.doctor.text import text
from qlora_bf16_patch.engine.patch import Patch
from qlora_bf16_patch.engine.versions import installed, reaches
from qlora_bf16_patch.patches import CATALOGUE
from qlora_bf16_patch.patches.versions import FLOORS

ROOT = Path(__file__).parents[2]
# A bitsandbytes whose 4-bit layers keep every promise: its own forward (0.50.2, nn/modules.py) without the writes.
MENDED = """
import bitsandbytes as bnb

def forward(self, x):
    if not x.is_floating_point():
        raise TypeError("a 4-bit layer takes floating activations")
    dtype = self.compute_dtype or x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    found = bnb.matmul_4bit(x.to(dtype), self.weight, bias=bias, quant_state=self.weight.quant_state)
    return found.to(x.dtype)

bnb.nn.modules.Linear4bit.forward = forward
"""


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_the_installed_release_keeps_by_itself_what_the_catalogue_says_and_nothing_else(patch):
    version = installed(patch.distribution)
    for promise, answer in zip(needed.promises(patch), needed.answers(patch), strict=True):
        told = f"{patch.name}: {patch.distribution} {version} {promise.text} by itself"
        if promise.kept_from and reaches(version, promise.kept_from):
            assert answer.itself, f"{told} since {promise.kept_from}, says the catalogue, and it does not"
        elif not promise.broken_on:
            assert answer.itself is False, f"{told}: say so as its kept_from, and in docs/upstream.md"


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_a_patch_is_mended_in_the_release_that_keeps_the_last_of_its_promises(patch):
    kept = [promise.kept_from for promise in needed.promises(patch)]
    assert bool(patch.mended_in) == all(kept)
    assert all(reaches(patch.mended_in, release) for release in kept if patch.mended_in)
    assert not reaches(FLOORS[patch.distribution], patch.mended_in), "no release that is asked for needs it"


def test_a_mended_release_fails_the_test_that_says_the_patch_can_go(tmp_path):
    (tmp_path / "mended.py").write_text(MENDED)
    test = "tests/doctor/test_needed.py::test_a_patch_makes_its_promises_true_and_is_still_needed_for_one"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "mended", "-p", "no:cacheprovider", f"{test}[bitsandbytes.linear4bit]"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    release = installed("bitsandbytes")
    assert f"bitsandbytes {release} does all of it by itself: bitsandbytes.linear4bit can go" in result.stdout
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([Answer("a", True, True), Answer("b", True, True)], "library 1.0 does all of it by itself: a.patch can go"),
        ([Answer("a", True, True), Answer("b", False, True)], ""),
        ([Answer("a", True, True), Answer("b", None, None, "OSError: no")], ""),
        ([], ""),
    ],
    ids=["all", "some", "unknown", "nothing promised"],
)
def test_a_patch_can_go_where_all_of_its_promises_were_asked_and_hold(answers, told):
    patch = Patch("a.patch", "library", "f", "m:f", distribution="library")
    assert can_go(patch, "1.0", answers) == told


@pytest.mark.parametrize("told", ["", "library 1.0 does all of it by itself: a.patch can go"])
def test_the_doctor_tells_it(told):
    row = {"name": "a.patch", "state": "active", "reason": "", "decided_by": "default", "version": "1.0", "notes": ()}
    found = {"sentence": "library 1.0 keeps a itself", "can_go": told, "answers": []}
    report = {"works": True, "problems": [], "version": "1", "patches": [row], "needed": {"a.patch": found}}
    assert ("    library 1.0 keeps a itself\n    library 1.0 does all of it" in text(report)) == bool(told)
