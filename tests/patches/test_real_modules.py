"""PEFT works on the model's own modules: what it writes reaches them, hooks are given them, and no bit is another."""

import copy

import pytest
import torch
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.hosts.as_written import AsWritten
from toys.layers import BF16, F32, autocast, hidden_states
from toys.methods import Proj, config_of, methods, with_adapters

from ..checks import assert_unchanged, state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # advice on a method's options

METHODS = [pytest.param(method, bits, {}, id=f"{method}-{bits}") for method, bits in methods()]
DORA = [pytest.param("LORA", bits, {"use_dora": True}, id=f"DoRA-{bits}") for bits in (4, 8)]
SUBTRACTING = [param for param in METHODS if param.values[0] in ("BOFT", "DEFT")] + DORA[:1]


def built(method, bits, options, adapter_dtype=F32, bias=F32):
    """A layer with a method's adapter; its bias has another dtype than it computes in."""
    toy = Proj(bits, BF16, True)
    toy.proj.bias.data = nn.init.normal_(toy.proj.bias.data).to(bias)
    torch.manual_seed(1)
    return with_adapters(toy, config_of(method, **options), adapter_dtype)


def layer_of(model):
    return model.base_model.model.proj


@pytest.mark.parametrize(("method", "bits", "options"), METHODS + DORA)
def test_a_forward_that_unmerges_leaves_what_unmerging_leaves(method, bits, options):
    model = built(method, bits, options).eval()
    layer = layer_of(model)
    if not hasattr(layer, "merge"):
        pytest.skip("it cannot be merged")
    try:
        layer.merge()
        expected = copy.deepcopy(layer)
        expected.unmerge()
    except Exception as error:
        pytest.skip(f"it cannot be merged and unmerged: {type(error).__name__}: {error}")
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(layer(hidden_states()), expected.base_layer(hidden_states()))
    assert not layer.merged
    assert_unchanged(layer, state(expected))


def test_a_dtype_error_while_a_forward_unmerges_is_fixed():
    model = built("ROAD", 4, {}, adapter_dtype=BF16).eval()
    model.merge_adapter()
    for shim, call in ((True, qlora_bf16_patch.enabled), (False, qlora_bf16_patch.disabled)):
        other = copy.deepcopy(model)
        with torch.no_grad(), call(), other.disable_adapter():
            if shim:
                assert other(hidden_states()).isfinite().all()
            else:
                with pytest.raises(RuntimeError, match="same dtype"):
                    other(hidden_states())


def step(model, x, region):
    """Output and gradients of a training step."""
    x = x.clone().requires_grad_()
    torch.manual_seed(4)
    with autocast(region):
        output = model.train()(x)
    output.float().square().mean().backward()
    gradients = [p.grad for p in (*model.parameters(), x) if p.grad is not None]
    return [output.detach(), *gradients]


@pytest.mark.parametrize(("method", "bits", "options"), METHODS + DORA)
def test_hooks_on_the_base_layer_are_given_the_module_as_often_as_unpatched(method, bits, options):
    def seen(region):
        model = built(method, bits, options)
        base, found = layer_of(model).base_layer, []
        base.register_forward_pre_hook(lambda module, args: found.append(module))
        base.register_forward_hook(lambda module, args, output: found.append(module))
        base.register_full_backward_hook(lambda module, given, out: found.append(module))
        step(model, hidden_states(), region)
        assert all(module is base for module in found)
        return len(found)

    for region in (None, BF16):
        with qlora_bf16_patch.disabled():
            try:
                expected = seen(region)
            except RuntimeError:  # of dtypes, or of views that are written to
                continue
        assert seen(region) == expected


@pytest.mark.parametrize("bias", [F32, BF16], ids=str)
@pytest.mark.parametrize(("method", "bits", "options"), METHODS + DORA[:1])
def test_with_a_bias_of_another_dtype_a_training_step_has_the_unpatched_bits_and_writes_nothing(
    method, bits, options, bias
):
    for adapter_dtype in (F32, BF16):
        model = built(method, bits, options, adapter_dtype, bias)
        with torch.no_grad():
            model(hidden_states())  # some keep what their first call computes
        before = state(model)
        for dtype in (F32, BF16):
            for region in (None, BF16):
                fresh = built(method, bits, options, adapter_dtype, bias)
                try:
                    with qlora_bf16_patch.disabled():
                        expected = step(fresh, hidden_states(dtype), region)
                except RuntimeError:  # of dtypes, or of views that are written to
                    continue
                model.zero_grad()
                found = step(model, hidden_states(dtype), region)
                assert [value.dtype for value in found] == [value.dtype for value in expected]
                assert all(map(torch.equal, found, expected))
        assert_unchanged(model, before)


def passed_on(mode, func, types, args=(), kwargs=None):
    return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "bits", "options"), SUBTRACTING)
def test_without_what_bitsandbytes_would_have_written_a_step_has_other_bits(method, bits, options, monkeypatch):

    def outputs():
        calls = [(dtype, region) for dtype in (F32, BF16) for region in (None, BF16)]
        return [step(built(method, bits, options), hidden_states(dtype), region)[0] for dtype, region in calls]

    with qlora_bf16_patch.disabled():
        expected = outputs()
    assert all(map(torch.equal, outputs(), expected))
    monkeypatch.setattr(AsWritten, "__torch_function__", passed_on)
    assert not all(map(torch.equal, outputs(), expected))
