"""bitsandbytes.linear4bit: contracts A to D and F on the real layer."""

import contextlib
import copy
import inspect
import logging

import pytest
import torch

import qlora_bf16_patch
from toys.layers import FLOATING, autocast, linear4bit
from toys.models import lora_layer

from ..checks import MODES, assert_takes_a_flattened_bias, assert_unchanged, state

NAME = "bitsandbytes.linear4bit"


@pytest.mark.parametrize("bias", [False, *FLOATING], ids=str)
@pytest.mark.parametrize("compute_dtype", [None, *FLOATING], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_nothing_is_mutated_the_dtype_comes_back_and_autocast_changes_nothing(dtype, compute_dtype, bias):
    layer = linear4bit(compute_dtype, bias)
    before, x = state(layer), torch.randn(2, 3, 64).to(dtype)
    for mode in MODES.values():
        with mode():
            outside = layer(x)
            with autocast(compute_dtype or dtype):
                inside = layer(x)
        assert outside.dtype == inside.dtype == dtype
        assert torch.equal(outside, inside)
    assert_unchanged(layer, before)
    if compute_dtype is not None:
        assert layer.compute_dtype == compute_dtype


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_where_all_dtypes_agree_the_bits_are_the_unpatched_ones(dtype, bias):
    layer, x = linear4bit(dtype, bias and dtype), torch.randn(2, 3, 64).to(dtype)
    with qlora_bf16_patch.disabled(NAME):
        unpatched = layer(x)
    assert torch.equal(layer(x), unpatched)


@pytest.mark.failure(row=7)
@pytest.mark.parametrize("dtype", FLOATING[1:], ids=str)
def test_unpatched_a_forward_rounds_the_bias_for_good(dtype):
    def changes(layer):
        before = state(layer)
        layer(torch.randn(2, 64))
        return any(
            dtype != state(layer)[name][0] or not torch.equal(data, state(layer)[name][2])
            for name, (dtype, _, data) in before.items()
        )

    with qlora_bf16_patch.disabled(NAME):
        assert changes(linear4bit(dtype))
    assert not changes(linear4bit(dtype))


@pytest.mark.parametrize("compute_dtype", FLOATING[1:], ids=str)
def test_a_trained_bias_gets_the_gradient_of_its_own_dtype(compute_dtype):
    layer = linear4bit(compute_dtype)
    layer(torch.randn(2, 64)).sum().backward()
    assert layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(layer.bias.grad, torch.full((64,), 2.0))


@pytest.mark.failure(row=5)
def test_the_first_input_does_not_overrule_the_configured_compute_dtype():
    # bitsandbytes up to 0.46.1 arrives at this state: `compute_type_is_set` was False whatever had been configured.
    layer, x = linear4bit(torch.bfloat16), torch.randn(2, 64)
    layer.compute_type_is_set = False
    with qlora_bf16_patch.disabled(NAME):
        overruled = copy.deepcopy(layer)
        overruled(x)
    assert overruled.compute_dtype == torch.float32
    layer(x)
    assert layer.compute_dtype == torch.bfloat16


@pytest.mark.cpu("bitsandbytes repacks weights for it")
def test_a_weight_is_not_repacked_for_the_cpu():
    # From 0.49 on for CPUs with AVX512-bf16; the kernel is theirs, the repacking runs on any.
    def packed(layer):
        layer.support_avx512bf16_for_cpu = True
        with contextlib.suppress(Exception):
            layer.eval()(torch.randn(2, 64).bfloat16())
        return getattr(layer.weight.quant_state, "packing_format_for_cpu", False)

    with qlora_bf16_patch.disabled(NAME):
        assert packed(linear4bit())
    layer = linear4bit()
    before = state(layer)
    assert not packed(layer)
    assert_unchanged(layer, before)


@pytest.mark.cpu("bitsandbytes 0.48 and 0.49 write to the quant state there alone")
@pytest.mark.parametrize("dora", [False, True], ids=["plain", "DoRA"])
def test_a_quant_state_is_not_written_to_and_training_reads_what_was_written(monkeypatch, dora):
    # As matmul_4bit of bitsandbytes 0.48 and 0.49 does on a CPU.
    from bitsandbytes.autograd import _functions

    from qlora_bf16_patch.hosts import bitsandbytes as host

    matmul = _functions.matmul_4bit

    def overwriting(A, B, quant_state, *args, **kwargs):
        quant_state.dtype = A.dtype
        return matmul(A, B, quant_state, *args, **kwargs)

    monkeypatch.setattr("bitsandbytes.matmul_4bit", overwriting)
    monkeypatch.setattr(host, "OVERWRITES_QUANT_STATE", True)
    layer, x = lora_layer(compute_dtype=torch.float16, use_dora=dora), torch.randn(2, 3, 64)
    layer.base_layer.compute_type_is_set = True  # before bitsandbytes 0.47 the first input would overrule it
    quantized = layer.base_layer.weight.quant_state

    def step(layer):
        given = x.clone().requires_grad_()
        with autocast(torch.bfloat16):
            layer(given).sum().backward()
        return given.grad

    with qlora_bf16_patch.disabled():
        other = copy.deepcopy(layer)
        expected = step(other)
    assert other.base_layer.weight.quant_state.dtype == torch.float16
    before = quantized.dtype
    assert torch.equal(step(layer), expected)
    assert layer.base_layer.weight.quant_state is quantized and quantized.dtype == before != torch.float16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool], ids=str)
def test_integer_activations_are_a_clear_error(dtype):
    with pytest.raises(TypeError, match=rf"{dtype} tensor of shape \(2, 64\).*storage dtype.*compute_dtype"):
        linear4bit()(torch.ones(2, 64).to(dtype))


@pytest.mark.failure(row=6)
def test_a_float32_compute_dtype_under_half_precision_inputs_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(qlora_bf16_patch._registry.installation(NAME), "notes", {})
    layer = linear4bit(torch.float32)
    with caplog.at_level(logging.WARNING, "qlora_bf16_patch"):
        layer(torch.randn(2, 64))
        assert not caplog.records
        for _ in range(2):
            layer(torch.randn(2, 64).bfloat16())
    assert [record.message.count("bnb_4bit_compute_dtype") for record in caplog.records] == [1]
    (row,) = (row for row in qlora_bf16_patch.status() if row.name == NAME)
    assert "bnb_4bit_compute_dtype" in row.notes[0]


def test_switched_off_the_bits_are_unpatched_and_uninstalled_the_very_object_is_back():
    import bitsandbytes.nn.modules as library

    original = inspect.unwrap(vars(library.Linear4bit)["forward"])
    qlora_bf16_patch.uninstall()
    try:
        assert vars(library.Linear4bit)["forward"] is original
    finally:
        qlora_bf16_patch.reset()
    assert vars(library.Linear4bit)["forward"] is not original
    assert inspect.unwrap(vars(library.Linear4bit)["forward"]) is original


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_bias_that_is_no_parameter_is_taken_and_not_written_to(dtype):
    assert_takes_a_flattened_bias(linear4bit(), dtype)
