"""Contract E: compiled equals eager, with no graph break, and a toggle after compilation is honoured."""

import copy

import pytest
import torch
from torch import nn

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, HALF, autocast, linear4bit
from toys.methods import Recipe
from toys.models import Model, Toy, lora_model
from toys.parts import Experts, Router

BACKENDS = ["eager", "aot_eager", "inductor"]


class Block(Toy):
    """A norm in float32, a 4-bit layer with LoRA and a float32 bias, attention, a router, experts and a head."""

    def __init__(self, compute_dtype=torch.bfloat16):
        super().__init__(compute_dtype=compute_dtype)
        self.norm = nn.LayerNorm(64)
        self.router, self.experts = Router().bfloat16(), Experts().bfloat16()

    def forward(self, x):
        x = self.proj(self.norm(x))
        x = nn.functional.scaled_dot_product_attention(x, x.bfloat16(), x.bfloat16())
        routed = self.experts(x, scale=2.0)[0].mean(0).mean(-1, keepdim=True)
        return self.head(x) + routed + self.router(x).mean(-1, keepdim=True)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")  # inductor's, of a float16 layer with a bfloat16 adapter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute_dtype", FLOATING, ids=str)
def test_a_compiled_model_equals_the_eager_one_and_follows_a_toggle(compute_dtype, backend):
    model = lora_model(toy=Block(compute_dtype))
    model.base_model.model.proj.lora_B.to(torch.bfloat16)  # another mismatch
    x = torch.randn(1, 4, 64)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), **tolerance(backend))
            with qlora_bf16_patch.disabled(), pytest.raises(Exception, match="dtype"):
                compiled(x)


def tolerance(backend):
    # Inductor fuses casts, so it keeps what eager rounds to bfloat16 between two operations.
    return {"atol": 5e-2, "rtol": 5e-2} if backend == "inductor" else {"atol": 0, "rtol": 0}


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute_dtype", HALF, ids=str)
def test_compiled_outside_autocast_a_layer_computes_what_it_computes_compiled_inside(compute_dtype, backend):
    model, x = lora_model(compute_dtype=compute_dtype, toy=Toy(True, compute_dtype, head=False)), torch.randn(2, 64)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        outside = compiled(x)
        with autocast(compute_dtype):
            inside = compiled(x)
    assert outside.dtype == inside.dtype == torch.float32
    torch.testing.assert_close(outside, inside, **tolerance(backend))


def test_the_lora_patch_is_at_work_in_compiled_code():
    model, x = lora_model(toy=Toy(bias=False, head=False)), torch.randn(2, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        patched = compiled(x)
        assert torch.equal(patched, model(x))
        with qlora_bf16_patch.disabled("peft.lora.linear4bit"):
            assert not torch.equal(compiled(x), patched)  # the adapters computed in float32
        assert torch.equal(compiled(x), patched)


def test_a_bias_of_another_dtype_breaks_the_unpatched_graph_and_not_the_patched_one():
    model, x = linear4bit(), torch.randn(2, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    refused = r"mutate tensor data|not set tensor"  # which of them depends on torch
    with qlora_bf16_patch.disabled(), pytest.raises(torch._dynamo.exc.TorchDynamoException, match=refused):
        compiled(x)
    assert torch.equal(compiled(x), model(x))


def test_compiled_training_has_the_gradients_of_eager_training():
    gradients = []
    for compiling in (False, True):
        model = lora_model(toy=Block()).train()
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiling else model
        torch.manual_seed(0)
        step(torch.randn(1, 4, 64)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-2)


def test_the_patches_add_no_graph_break_and_no_recompilation():
    model, x = lora_model(toy=Toy(head=False)), torch.randn(2, 64).bfloat16()
    model.base_model.model.proj.base_layer.bias = None

    def graphs(model):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(copy.deepcopy(model), backend=counter)
        with torch.no_grad():
            for _ in range(3):
                compiled(x)
        return counter.frame_count

    with qlora_bf16_patch.disabled():
        unpatched = graphs(model)
    assert graphs(model) <= unpatched


def test_that_training_is_seen_costs_no_graph_break_and_no_recompilation():
    def graphs():
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        model, x = lora_model(toy=Toy(bias=False, head=False)), torch.randn(2, 64)
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(3):
            model.train()
            compiled(x).sum().backward()
            model.eval()
            with torch.no_grad():
                compiled(x)
        return counter.frame_count

    with qlora_bf16_patch.disabled():
        unpatched = graphs()
    assert graphs() == unpatched == 2
    assert any(
        "was seen to train outside of autocast" in note for row in qlora_bf16_patch.status() for note in row.notes
    )


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # the attributes of a stand-in
def test_a_patched_model_is_exported():
    model, x = lora_model(toy=Block()), torch.randn(1, 4, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=True)  # without strict bitsandbytes' parameters fail
        assert torch.equal(exported.module()(x), model(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 8, dtype=torch.bfloat16)

    def forward(self, x):
        return self.out(self.lstm(x)[0] + x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at it, of what a break hands on
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_dynamo_breaks_the_graph_at_runs_as_without_a_compiler(dtype):
    torch._dynamo.reset()
    model = lora_model(toy=Model(Recurrent().to(dtype)))
    compiled, x = torch.compile(model, backend="eager"), torch.randn(2, 3, 64)
    for training in (True, False):
        model.train(training)
        for enabled in (True, False):
            with torch.set_grad_enabled(training), torch.autocast(devices.TYPE, torch.bfloat16, enabled=enabled):
                torch.testing.assert_close(compiled(x), model(x))


def test_a_model_in_several_graphs_computes_what_it_computes_uncompiled_and_follows_a_toggle():
    """What ``torch.compile`` makes by default of code that it cannot trace: before torch 2.8, of every 4-bit layer."""
    model, x = lora_model(toy=Block()), torch.randn(1, 4, 64)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), atol=0, rtol=0)
            with qlora_bf16_patch.disabled(), pytest.raises(Exception, match="type"):
                compiled(x)


def test_where_dynamo_traces_no_update_of_a_dict_an_overlay_is_made_entry_by_entry(monkeypatch):
    monkeypatch.setattr("qlora_bf16_patch.numerics.overlay._UPDATES", False)
    model, x = linear4bit(), torch.randn(2, 64)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("what", ["", "base_model.model.proj"], ids=["the model", "a layer"])
def test_a_graph_break_among_casts_in_training_does_no_harm(what):
    """DoRA dequantizes the weight, where Dynamo breaks the graph: inside of the patch's mode."""
    model, x = Recipe(variant="DoRA", adapter_dtype=torch.float32).build().train(), torch.randn(2, 64)
    model.base_model.model.proj.lora_magnitude_vector.to(torch.bfloat16)
    model.get_submodule(what).compile(backend="aot_eager")
    with qlora_bf16_patch.disabled():
        expected = model(x)
    torch._dynamo.reset()
    assert torch.equal(model(x), expected)
