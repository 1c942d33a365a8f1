"""Outside of autocast an evaluation computes what training computed: as it was seen to, else as under autocast."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftType

from toys.layers import BF16, F16, F32
from toys.methods import methods, recipes

from .steps import Call, as_under_autocast, assert_parity, evaluation_verdict, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # advice on a method's options

ROOT = Path(__file__).parents[2]
OUTSIDE = [Call(dtype, autocast=False) for dtype in (F32, BF16)]


@pytest.mark.parametrize(("method", "bits"), methods())
def test_a_model_that_was_trained_outside_of_autocast_evaluates_as_it_was_trained(method, bits):
    found = []
    for recipe in recipes(method, bits, calls=2, dropout=0.0):
        model = recipe.build()
        found += [evaluation_verdict(model, recipe, call) for call in OUTSIDE]
    assert_parity(found, some_run=method != PeftType.SHIRA)  # outside of autocast that never runs unpatched


@pytest.mark.parametrize("trained", [False, True], ids=["never trained", "trained under autocast"])
@pytest.mark.parametrize(("method", "bits"), methods())
def test_any_other_model_evaluates_as_under_autocast(method, bits, trained):
    found = []
    # Autocast knows no float32; an 8-bit layer computes in its input's dtype, and autocast's is that of the toys.
    for compute_dtype in (BF16, F16) if bits == 4 else (BF16,):
        for recipe in recipes(method, bits, calls=2, dropout=0.0, compute_dtype=compute_dtype):
            model = recipe.build()
            if trained:
                train(model, Call(BF16))
            found += [as_under_autocast(model, recipe, dtype) for dtype in ((F32, BF16) if bits == 4 else (BF16,))]
    assert_parity(found)


# The status is the process's, so what other tests have trained is told there as well.
TOLD = """
import json
from toys import devices
import qlora_bf16_patch
from toys.layers import *
from tests.training.steps import *

def notes():
    return [note for row in qlora_bf16_patch.status() for note in row.notes]

model = Recipe().build()
told = [notes()]
for autocast in (True, False):
    train(model, Call(BF16, autocast=autocast))
    told.append(notes())
print(json.dumps(told))
"""


def test_the_status_tells_that_a_model_was_seen_to_train_outside_of_autocast():
    run = subprocess.run([sys.executable, "-c", TOLD], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    before, under, outside = (" ".join(notes) for notes in json.loads(run.stdout.splitlines()[-1]))
    seen = re.compile(r"train(ed|ing)? outside of autocast")
    assert not seen.search(before)
    assert not seen.search(under)
    assert seen.search(outside), outside
