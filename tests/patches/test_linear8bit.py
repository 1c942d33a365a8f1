"""bitsandbytes.linear8bit: contracts A to D on the real layer; an 8-bit layer computes in its input's dtype."""

import bitsandbytes as bnb
import pytest
import torch

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, autocast

from ..checks import MODES, assert_takes_a_flattened_bias, assert_unchanged, state

NAME = "bitsandbytes.linear8bit"


def linear8bit(bias=True, training=False):
    torch.manual_seed(0)
    with devices.on_cpu():
        layer = bnb.nn.Linear8bitLt(64, 64, bias=bool(bias), has_fp16_weights=False)
    layer = layer.to(devices.TYPE).train(training)
    if isinstance(bias, torch.dtype):
        layer.bias.data = layer.bias.data.to(bias)
    layer(torch.randn(1, 64).to(layer.bias.dtype if bias else torch.float32))  # moves its statistics to their place
    return layer


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("bias", [False, *FLOATING], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_nothing_is_mutated_the_dtype_comes_back_and_autocast_changes_nothing(dtype, bias, training):
    layer = linear8bit(bias, training)
    before, x = state(layer), torch.randn(2, 3, 64).to(dtype)
    for name, mode in MODES.items():
        with mode():
            outside = layer(x)
            with autocast(dtype):
                inside = layer(x)
            # With gradients, and in training's own path, upstream's result stands, in autocast's dtype.
            if name != "training" and not training:
                with autocast(torch.bfloat16):
                    assert layer(x).dtype == dtype
        assert outside.dtype == inside.dtype == dtype
        assert torch.equal(outside, inside)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_where_all_dtypes_agree_the_bits_are_the_unpatched_ones(dtype, training):
    layer, x = linear8bit(dtype, training), torch.randn(2, 3, 64).to(dtype)
    with qlora_bf16_patch.disabled(NAME):
        unpatched = layer(x)
    assert torch.equal(layer(x), unpatched)


@pytest.mark.failure(row=7)
def test_unpatched_a_forward_rounds_the_bias_for_good():
    def bias_after(layer):
        layer(torch.randn(2, 64).bfloat16())
        return layer.bias

    with qlora_bf16_patch.disabled(NAME):
        assert bias_after(linear8bit()).dtype == torch.bfloat16
    before = linear8bit().bias.clone()
    assert torch.equal(bias_after(linear8bit()), before)


def test_what_a_training_layer_gives_back_under_autocast_is_upstreams():
    layer, x = linear8bit(training=True), torch.randn(2, 64)
    with autocast(torch.bfloat16):
        with qlora_bf16_patch.disabled(NAME):
            unpatched = layer(x)
        # On a CPU it trains on floating numbers, a matrix that autocast casts.
        assert unpatched.dtype == (torch.bfloat16 if devices.TYPE == "cpu" else torch.float32)
        assert torch.equal(layer(x), unpatched)
        with qlora_bf16_patch.enabled("bitsandbytes.autocast_output"):
            assert layer(x).dtype == torch.bfloat16


def test_an_evaluation_under_autocast_does_not_overflow():
    layer, x = linear8bit(), torch.randn(2, 64).half()
    expected = layer(x)
    with autocast(torch.float16):
        assert torch.equal(layer(x), expected)
        with qlora_bf16_patch.disabled(NAME):
            unpatched = layer(x)
    if "avx512" not in torch.backends.cpu.get_cpu_capability().lower():  # there bitsandbytes has a kernel
        assert (unpatched - expected).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool], ids=str)
def test_integer_activations_are_a_clear_error(dtype):
    with pytest.raises(TypeError, match=rf"Linear8bitLt was given a {dtype} tensor of shape \(2, 64\).*storage dtype"):
        linear8bit()(torch.ones(2, 64).to(dtype))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_bias_that_is_no_parameter_is_taken_and_not_written_to(dtype):
    assert_takes_a_flattened_bias(linear8bit(), dtype)
