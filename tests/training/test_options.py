"""``*.autocast_output``: under autocast a k-bit layer, bare or adapted by any method, gives back autocast's dtype."""

import pytest
import torch

import qlora_bf16_patch
from toys.layers import BF16, F32, hidden_states
from toys.methods import methods, recipes

from .steps import assert_parity, option_verdict

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # advice on a method's options

LAYERS = [(method, bits, "proj") for method, bits in methods()]
LAYERS += [("LORA", bits, "bare") for bits in (4, 8)]  # the same in every method's model


@pytest.mark.failure(row=8)
@pytest.mark.failure(row=10)
@pytest.mark.parametrize(("method", "bits", "name"), LAYERS)
def test_with_the_option_a_layer_gives_back_autocasts_dtype(method, bits, name):
    found = []
    for recipe in recipes(method, bits, calls=2, dropout=0.0):
        model = recipe.build()  # kept: an option that is switched on later is for the models that there are
        layer = getattr(model.get_base_model(), name)
        for dtype in (F32, BF16):
            for training in (False, True):
                layer.train(training)
                with torch.set_grad_enabled(training):
                    found.append(option_verdict(layer, f"{recipe}; {dtype}, {training=}", hidden_states(dtype)))
    assert_parity(found)


@pytest.mark.parametrize(("method", "bits"), methods())
def test_outside_of_autocast_the_inputs_dtype_comes_back_with_the_option_as_well(method, bits):
    for recipe in recipes(method, bits, calls=2, dropout=0.0):
        layer = recipe.build().eval().get_base_model().proj
        for dtype in (F32, BF16):
            with torch.no_grad(), qlora_bf16_patch.enabled("*.autocast_output"):
                assert layer(hidden_states(dtype)).dtype == dtype, recipe
