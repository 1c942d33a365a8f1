"""peft.lora.linear4bit: contracts A to D and F on the real layer."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import qlora_bf16_patch
from qlora_bf16_patch.hosts.peft import is_kbit_layer
from toys import devices
from toys.layers import FLOATING, HALF, autocast, linear4bit
from toys.models import lora_layer, lora_model, two_adapters

from ..checks import MODES, assert_as_under_autocast, assert_unchanged, state

NAME = "peft.lora.linear4bit"
KINDS = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("compute_dtype", [None, *FLOATING], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_layer_computes_as_under_autocast_gives_the_dtype_back_and_mutates_nothing(
    dtype, compute_dtype, adapter_dtype, kind
):
    for bias in (True, False) if kind != "lora_bias" else (True,):
        layer = lora_layer(adapter_dtype, compute_dtype, bias, **KINDS[kind])
        before, x = state(layer), torch.randn(2, 3, 64).to(dtype)
        for mode in (MODES["no grad"], MODES["inference"]):
            with mode():
                outside = layer(x)
                with autocast(compute_dtype or dtype):
                    inside = layer(x)
            assert_as_under_autocast(outside, inside, dtype)
        assert_unchanged(layer, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_where_all_dtypes_agree_the_bits_are_the_unpatched_ones(dtype, kind):
    layer, x = lora_layer(dtype, dtype, bias=dtype, **KINDS[kind]), torch.randn(2, 3, 64).to(dtype)
    with qlora_bf16_patch.disabled(NAME):
        unpatched = layer(x)
    assert torch.equal(layer(x), unpatched)  # with gradients it always is upstream's
    with torch.no_grad():
        evaluated = layer(x)
    if kind == "dora" and dtype != torch.float32:
        # Autocast computes DoRA's norm in float32, and that is what training computed.
        torch.testing.assert_close(evaluated, unpatched, atol=2e-2, rtol=2e-2)
    else:
        assert torch.equal(evaluated, unpatched)


@torch.no_grad()
def test_unpatched_generation_computes_something_else_than_training():
    layer, x = lora_layer(), torch.randn(2, 64)
    with qlora_bf16_patch.disabled(NAME):
        outside = layer(x)
        with autocast(torch.bfloat16):
            inside = layer(x)
    assert not torch.equal(outside, inside)
    assert torch.equal(layer(x), inside)


@pytest.mark.failure(row=11)
@pytest.mark.parametrize("compute_dtype", FLOATING, ids=str)
def test_matrices_of_an_adapter_in_two_dtypes_no_longer_mismatch(compute_dtype):
    layer, x = lora_layer(compute_dtype=compute_dtype), torch.randn(2, 64)
    layer.lora_B.to(torch.bfloat16)
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
        layer(x)
    assert layer(x).dtype == torch.float32


@pytest.mark.failure(row=12)
@torch.no_grad()
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
@torch.no_grad()
def test_several_adapters_of_different_dtypes_compute_as_under_autocast(dtype, compute_dtype, first):
    layer, x = two_adapters(first, torch.float32, compute_dtype), torch.randn(2, 64).to(dtype)
    before, outside = state(layer), layer(x)
    with autocast(compute_dtype):
        inside = layer(x)
    assert_as_under_autocast(outside, inside, dtype)
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
@torch.no_grad()
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
@torch.no_grad()
def test_switched_off_the_bits_are_the_originals(dtype):
    layer, x = lora_layer(), torch.randn(2, 64).to(dtype)
    original = type(layer).forward.__wrapped__
    with qlora_bf16_patch.disabled(NAME):
        assert torch.equal(layer(x), original(layer, x))
    assert not torch.equal(layer(x), original(layer, x))


@torch.no_grad()
def test_a_hook_on_the_dropout_runs_and_a_dropout_of_ones_own_counts():
    layer, x = lora_layer(torch.bfloat16, lora_dropout=0.1), torch.randn(2, 64).bfloat16()
    calls = []
    layer.lora_dropout["default"].register_forward_hook(lambda *_: calls.append(1))
    layer(x)
    assert calls == [1]
    layer.lora_dropout["default"] = Zeros().eval()
    assert torch.equal(layer(x), layer.base_layer(x))


class Zeros(torch.nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@torch.no_grad()
def test_a_hook_on_the_base_layer_sees_what_it_would_see_under_autocast():
    layer, x, seen = lora_layer(), torch.randn(2, 64), []
    layer.base_layer.register_forward_hook(lambda _, args, output: seen.append(args[0].dtype) or output * 1.1 + 0.01)
    outside = layer(x)
    with autocast(torch.bfloat16):
        inside = layer(x)
    assert torch.equal(outside, inside)
    assert seen == [torch.float32, torch.float32]


def fallbacks():
    """What takes a layer off the path of its own, by name: a function that does it to the layer."""
    A = "default"
    return {
        "a hook on A": lambda layer: layer.lora_A[A].register_forward_hook(lambda *_: None),
        "a pre-hook on B": lambda layer: layer.lora_B[A].register_forward_pre_hook(lambda *_: None),
        "a subclassed adapter": lambda layer: setattr(layer.lora_A[A], "__class__", Subclassed),
        "accelerate's hook": lambda layer: add_hook_to_module(layer.lora_A[A], ModelHook()),
        "an offloaded adapter": lambda layer: cpu_offload(layer.lora_A[A], execution_device=torch.device("cpu")),
        "dropout in training": lambda layer: layer.lora_dropout.update({A: torch.nn.Dropout(0.0).train()}),
        "switched off casts": lambda layer: setattr(layer, "cast_input_dtype_enabled", False),
        "a sharded parameter": lambda layer: layer.lora_A[A].register_parameter(
            "weight", Sharded(layer.lora_A[A].weight)
        ),
        "a global hook": lambda layer: None,
    }


class Subclassed(torch.nn.Linear):
    pass


class Sharded(torch.nn.Parameter):
    """As a DTensor is: not a plain parameter."""


@pytest.mark.parametrize("name", fallbacks())
@torch.no_grad()
def test_whatever_is_not_plain_falls_back_to_upstreams_forward(name, monkeypatch):
    layer, x, upstream = lora_layer(), torch.randn(2, 64), []
    base = layer.base_layer.forward
    monkeypatch.setattr(layer.base_layer, "forward", lambda x: upstream.append(autocast_is_on()) or base(x))
    layer(x)
    assert upstream == [False]  # the path of its own, outside any region
    fallbacks()[name](layer)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None) if name == "a global hook" else None
    try:
        outside = layer(x)
        with autocast(torch.bfloat16):
            inside = layer(x)
    finally:
        if handle is not None:
            handle.remove()
    assert upstream == [False, True, True]
    assert torch.equal(outside, inside)


@pytest.mark.parametrize("parts", ["base", "base and adapters"])
@torch.no_grad()
def test_a_layer_whose_parts_an_engine_has_wrapped_computes_as_before(parts):
    layer, x = lora_layer(torch.bfloat16), torch.randn(2, 64)
    expected = layer(x)
    layer.base_layer = checkpoint_wrapper(layer.base_layer)
    if parts == "base and adapters":
        layer.lora_A["default"] = checkpoint_wrapper(layer.lora_A["default"])
        layer.lora_B["default"] = checkpoint_wrapper(layer.lora_B["default"])
    assert torch.equal(layer(x), expected)
    with autocast(torch.bfloat16):
        assert torch.equal(layer(x), expected)
    with pytest.raises(TypeError, match=r"compute_dtype \(torch\.bfloat16\)"):
        layer(x.long())
    assert is_kbit_layer(layer)


def test_matrices_of_two_dtypes_that_an_engine_has_wrapped_no_longer_mismatch():
    layer, x = lora_layer(), torch.randn(2, 64)
    layer.lora_B["default"].to(torch.bfloat16)
    expected = layer(x)
    for adapters in (layer.lora_A, layer.lora_B):
        adapters["default"] = checkpoint_wrapper(adapters["default"])
    with qlora_bf16_patch.disabled(NAME), pytest.raises(RuntimeError, match="same dtype"):
        layer(x)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", ["dora", "rslora"])
@torch.no_grad()
def test_a_variant_falls_back_and_a_scaling_does_not(kind):
    layer, x, upstream = lora_layer(**KINDS[kind]), torch.randn(2, 64), []
    layer.base_layer.register_forward_hook(lambda *_: upstream.append(autocast_is_on()))
    layer(x)
    assert upstream == [kind == "dora"]


def autocast_is_on():
    return torch.is_autocast_enabled(devices.TYPE)


@pytest.mark.parametrize("kind", ["plain", "dora"])
@torch.no_grad()
def test_in_an_outer_region_that_is_off_a_changed_weight_counts_at_once(kind):
    layer, x = lora_layer(lora_dropout=0.1, **KINDS[kind]).train(), torch.randn(2, 64)

    def run():
        torch.manual_seed(0)
        return layer(x)

    with torch.autocast(devices.TYPE, enabled=False):
        before = run()
        with torch.no_grad():
            layer.lora_B["default"].weight *= 2
        inside = run()
    assert torch.equal(inside, run())
    assert not torch.equal(inside, before)


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize(("adapter_dtype", "compute_dtype"), [HALF, HALF[::-1]], ids=str)
def test_float64_hidden_states_run_where_they_run_unpatched(adapter_dtype, compute_dtype, kind):
    layer = lora_layer(adapter_dtype, compute_dtype, lora_dropout=0.1, **KINDS[kind])
    for training in (False, True):
        for region in (None, compute_dtype):
            layer.train(training)
            with autocast(region):
                if devices.TYPE == "cuda" and region:  # PEFT casts nothing there, and autocast leaves float64 alone
                    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
                        layer(torch.randn(2, 64).double())
                else:
                    assert layer(torch.randn(2, 64).double()).dtype == torch.float64


class TwoRegions(torch.nn.Module):
    """A model that switches autocast off for its second layer."""

    is_loaded_in_4bit = True

    def __init__(self):
        super().__init__()
        self.proj, self.projected = linear4bit(), linear4bit()

    def forward(self, x):
        x = self.proj(x)
        with torch.autocast(devices.TYPE, enabled=False):
            return self.projected(x)


def test_a_layer_that_a_model_trains_outside_of_its_autocast_evaluates_so_and_the_others_do_not():
    model = lora_model(toy=TwoRegions()).train()
    layers, x = model.base_model.model, torch.randn(2, 64)
    with autocast(torch.bfloat16):
        model(x).sum().backward()
    model.eval()
    with torch.no_grad():
        with qlora_bf16_patch.disabled():
            outside = layers.projected(x)
            with autocast(torch.bfloat16):
                inside = layers.proj(x)
        assert torch.equal(layers.projected(x), outside)
        assert torch.equal(layers.proj(x), inside)


@pytest.fixture
def cuda_autocast():
    """What ``torch.is_autocast_enabled()`` without a device looks at, as PEFT does; no GPU is needed to set it."""
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.failure(row=8)
@pytest.mark.usefixtures("cuda_autocast")
@pytest.mark.cpu("there autocast is the layer's own, and upstream's result stands")
@torch.no_grad()
def test_dora_gives_a_bfloat16_stream_back_where_peft_takes_autocast_for_on():
    layer, x = lora_layer(torch.float32, use_dora=True), torch.randn(2, 64).bfloat16()
    layer.lora_A.to(torch.bfloat16)
    layer.lora_B.to(torch.bfloat16)  # what autocast would do on the GPU; the magnitude stays float32
    with qlora_bf16_patch.disabled():
        assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16


@pytest.mark.failure(row=15)
@pytest.mark.usefixtures("cuda_autocast")
def test_a_layer_on_the_cpu_runs_inside_cudas_autocast():
    layer, x = lora_layer(torch.bfloat16).to("cpu"), torch.randn(2, 64, device="cpu")
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="dtype"):
        layer(x)
    assert layer(x).dtype == torch.float32
