"""A training run that works is never changed: with gradients, in and out of autocast, its bits are the unpatched ones.

Most tests range over many combinations in a loop, and name those that fail: as tests of their own they would take more
time than the steps do.
"""

import copy

import pytest

import qlora_bf16_patch
from toys.layers import BF16
from toys.methods import LORA_VARIANTS, methods, recipes

from .steps import Call, assert_parity, calls, difference, train, verdict

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # advice on a method's options

LORA = [(method, bits) for method, bits in methods() if method == "LORA"]
OTHERS = [(method, bits) for method, bits in methods() if method != "LORA"]


def verdicts(recipes, calls):
    found, calls = [], list(calls)
    for recipe in recipes:
        model = recipe.build()
        found += [verdict(model, recipe, call) for call in calls]
    return found


@pytest.mark.parametrize("variant", LORA_VARIANTS)
@pytest.mark.parametrize(("method", "bits"), LORA)
def test_a_training_step_of_lora_that_works_has_the_unpatched_bits(method, bits, variant):
    assert_parity(verdicts(recipes(method, bits, variant=variant), calls()))


@pytest.mark.parametrize(("method", "bits"), OTHERS)
def test_a_training_step_of_another_method_that_works_has_the_unpatched_bits(method, bits):
    assert_parity(verdicts(recipes(method, bits), calls(["none", "reentrant", "non-reentrant"])))


@pytest.mark.parametrize(("method", "bits"), LORA)
def test_a_step_with_a_float32_norm_and_a_bf16_head_is_mended_where_it_fails_and_nowhere_else(method, bits):
    found = verdicts(recipes(method, bits, variant="plain", dropout=0.05, head=BF16), calls())
    assert_parity(found)
    assert any(one.kind == "mended" for one in found)


@pytest.mark.parametrize(("method", "bits"), LORA)
def test_reentrant_checkpointing_whose_forward_has_no_gradients_trains_as_unpatched(method, bits):
    """Its forward looks like an evaluation's, in a model that nobody has seen in training yet."""
    for recipe in recipes(method, bits, calls=2, dropout=0.0):
        model, call = recipe.build(), Call(BF16, "reentrant", autocast=False)
        with qlora_bf16_patch.disabled():
            expected = train(copy.deepcopy(model), call)
        assert not difference(train(model, call), expected), recipe
