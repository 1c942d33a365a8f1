"""Contract E on a whole model: decoding with a static cache, and a training step, compiled with ``fullgraph=True``."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import StaticCache

import qlora_bf16_patch
from toys.conditions import unpatched
from toys.llama import TOY, llama

RECIPES = ["plain", "qlora"]

# Third parties about each other, and Inductor about a machine without its favourite instructions.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def aten(operations):
    """A backend that runs what it is given, and appends the number of its operations to ``operations``."""

    def compiler(graph, _inputs):
        operations.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward

    return CompileCounterWithBackend(aot_autograd(fw_compiler=compiler, bw_compiler=compiler))


@torch.no_grad()
def decode(model, forward):
    """Logits of four tokens, one call each, with a static cache."""
    cache = StaticCache(config=model.config, max_cache_len=8)
    steps = [
        forward(
            input_ids=torch.tensor([[5 + position]]),
            past_key_values=cache,
            cache_position=torch.tensor([position]),
            position_ids=torch.tensor([[position]]),
        ).logits
        for position in range(4)
    ]
    return torch.cat(steps)


def train(model, forward):
    """Losses of three steps under autocast; the weights stay."""
    losses = []
    ids = torch.arange(3, 15)[None]
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(forward(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
    return torch.stack(losses).detach()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("run", [decode, train])
def test_no_graph_no_recompilation_and_no_operation_more_than_unpatched(run, recipe):
    model = llama(TOY, recipe).train(run is train)

    def measured():
        torch._dynamo.reset()
        operations = []
        backend = aten(operations)
        result = run(model, torch.compile(model, fullgraph=True, backend=backend))
        return backend.frame_count, operations, result

    graphs, operations, result = measured()
    assert torch.equal(result, run(model, model))
    if recipe == "qlora" and run is decode:
        with unpatched(), pytest.raises(RuntimeError, match="dtype"):
            measured()
        return
    with unpatched():
        # Compiled, upstream alone is not always to the bit what it is in eager mode.
        graphs_unpatched, operations_unpatched, _ = measured()
    assert graphs <= graphs_unpatched
    assert len(operations) == len(operations_unpatched) > 0
    if run is decode:  # no clone, and the adapters' products in two dimensions
        assert all(ours < theirs for ours, theirs in zip(operations, operations_unpatched, strict=True))
    else:
        assert operations == operations_unpatched


def test_a_checkpoint_stays_in_its_graph_and_what_is_run_again_draws_the_same_dropout():
    def gradients():
        torch._dynamo.reset()
        torch.manual_seed(0)  # of adapters and dropout
        model = llama(TOY, "plain").train()  # seen to train for the first time while Dynamo traces
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()  # its hook breaks the graph
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout["default"] = torch.nn.Dropout(0.5)
        train(model, torch.compile(model, fullgraph=True, backend="aot_eager"))
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    with unpatched():
        expected = gradients()
    assert expected
    for name, gradient in gradients().items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("run", [decode, train])
def test_inductor_takes_the_whole_model_and_decoding_follows_a_toggle(run):
    model = llama(TOY, "qlora").train(run is train)
    backend = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(run(model, compiled), run(model, model), atol=5e-2, rtol=5e-2)
    if run is decode:
        with qlora_bf16_patch.disabled(), pytest.raises(Exception, match="dtype"):
            decode(model, compiled)
    graphs = backend.frame_count
    torch.testing.assert_close(run(model, compiled), run(model, model), atol=5e-2, rtol=5e-2)
    assert backend.frame_count == graphs  # what was compiled before the toggle is found again


def test_a_model_with_a_graph_break_is_compiled_as_it_is_without_the_patches():
    """In training: tests/patches/test_compile.py."""
    model, ids = llama(TOY, "plain").eval(), torch.arange(3, 15)[None]
    model.get_base_model().lm_head.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
        result = torch.compile(model, backend="eager")(ids, labels=ids).loss
    assert torch.equal(result, expected)
