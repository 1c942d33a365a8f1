"""peft.lora.linear4bit: contracts A to D and F on the real layer."""

import pytest
import torch

import qlora_bf16_patch

from .conftest import FLOATING, HALF, MODES, assert_unchanged, autocast, lora_layer, lora_model, state

NAME = "peft.lora.linear4bit"
KINDS = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("compute_dtype", [None, *FLOATING], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_layer_computes_as_under_autocast_gives_the_dtype_back_and_mutates_nothing(
    dtype, compute_dtype, adapter_dtype, kind
):
    layer = lora_layer(adapter_dtype, compute_dtype, **KINDS[kind])
    before, x = state(layer), torch.randn(2, 3, 64).to(dtype)
    for mode in MODES.values():
        with mode():
            outside = layer(x)
            with autocast(compute_dtype or dtype):
                inside = layer(x)
        assert outside.dtype == inside.dtype == dtype
        assert torch.equal(outside, inside)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_where_all_dtypes_agree_the_bits_are_the_unpatched_ones(dtype, kind):
    layer, x = lora_layer(dtype, dtype, bias=dtype, **KINDS[kind]), torch.randn(2, 3, 64).to(dtype)
    with qlora_bf16_patch.disabled(NAME):
        unpatched = layer(x)
    if kind == "dora" and dtype != torch.float32:
        # Autocast computes DoRA's norm in float32, and that is what training computed.
        torch.testing.assert_close(layer(x), unpatched, atol=2e-2, rtol=2e-2)
    else:
        assert torch.equal(layer(x), unpatched)


def test_unpatched_generation_computes_something_else_than_training():
    layer, x = lora_layer(), torch.randn(2, 64)
    with qlora_bf16_patch.disabled(NAME):
        outside = layer(x)
        with autocast(torch.bfloat16):
            inside = layer(x)
    assert not torch.equal(outside, inside)
    assert torch.equal(layer(x), inside)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_are_those_under_autocast(dtype):
    x, gradients = torch.randn(2, 64).to(dtype), []
    for region in (autocast(None), autocast(torch.bfloat16)):
        layer = lora_layer()
        with region:
            layer.train()(x).float().square().sum().backward()
        gradients.append([p.grad for name, p in layer.named_parameters() if "lora_" in name])
    assert len(gradients[0]) == 2
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("compute_dtype", FLOATING, ids=str)
def test_matrices_of_an_adapter_in_two_dtypes_no_longer_mismatch(compute_dtype):
    layer, x = lora_layer(compute_dtype=compute_dtype), torch.randn(2, 64)
    layer.lora_B.to(torch.bfloat16)
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
        layer(x)
    assert layer(x).dtype == torch.float32


def two_adapters(first, second, compute_dtype):
    model = lora_model(torch.float32, compute_dtype)
    model.add_adapter("other", model.peft_config["default"])
    layer = model.base_model.model.proj
    layer.lora_A["default"].to(first)
    layer.lora_B["default"].to(first)
    layer.lora_A["other"].to(second)
    layer.lora_B["other"].to(second)
    layer.set_adapter(["default", "other"])
    return layer


def test_the_second_of_two_adapters_sees_the_input_as_it_came():
    layer, x = two_adapters(torch.bfloat16, torch.float32, torch.float32), torch.randn(4, 64)
    a, b = (layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() for name in ("default", "other"))
    expected = layer.base_layer(x) + x @ (a + b).T * layer.scaling["default"]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    with qlora_bf16_patch.disabled(NAME):
        assert (layer(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("first", FLOATING, ids=str)
@pytest.mark.parametrize("compute_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_several_adapters_of_different_dtypes_compute_as_under_autocast(dtype, compute_dtype, first):
    layer, x = two_adapters(first, torch.float32, compute_dtype), torch.randn(2, 64).to(dtype)
    before, outside = state(layer), layer(x)
    with autocast(compute_dtype):
        inside = layer(x)
    assert outside.dtype == inside.dtype == dtype
    assert torch.equal(outside, inside)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("compute_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_batch_of_adapter_names_computes_each_row_with_its_own_adapter(dtype, compute_dtype):
    layer, x = two_adapters(torch.bfloat16, torch.float32, compute_dtype), torch.randn(3, 64).to(dtype)
    names = ["default", "__base__", "other"]
    with torch.no_grad():
        outside = layer(x, adapter_names=names)
        with autocast(compute_dtype):
            inside = layer(x, adapter_names=names)
        assert outside.dtype == inside.dtype == dtype
        assert torch.equal(outside, inside)
        layer.set_adapter("other")
        alone = layer(x[2:])
    torch.testing.assert_close(outside[2:].float(), alone.float(), atol=1e-2, rtol=1e-2)
    assert torch.equal(outside[1], layer.base_layer(x)[1])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_merged_and_disabled_adapters_leave_the_base_layer(dtype):
    model, x = lora_model(), torch.randn(2, 64).to(dtype)
    layer = model.base_model.model.proj
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    with pytest.warns(UserWarning, match="rounding errors"):
        layer.merge()
    merged = layer(x)
    assert merged.dtype == dtype
    assert torch.equal(merged, layer.base_layer(x))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_switched_off_the_bits_are_the_originals(dtype):
    layer, x = lora_layer(), torch.randn(2, 64).to(dtype)
    original = type(layer).forward.__wrapped__
    with qlora_bf16_patch.disabled(NAME):
        assert torch.equal(layer(x), original(layer, x))
    assert not torch.equal(layer(x), original(layer, x))
