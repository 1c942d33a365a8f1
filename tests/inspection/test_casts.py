"""Every cast that a patch makes is in the trace: held against the casts that torch itself dispatches."""

import contextlib
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import qlora_bf16_patch
from qlora_bf16_patch.engine.installation import Installation
from qlora_bf16_patch.patches import linear8bit
from qlora_bf16_patch.watching import events
from qlora_bf16_patch.watching.events import CastRefused
from toys.layers import hidden_states, kbit, short
from toys.methods import Recipe
from toys.models import lora_model

BF16, F32 = torch.bfloat16, torch.float32
RECIPES = [
    Recipe(method, bits, adapter_dtype=dtype, variant=variant)
    for method, bits, variant in [
        ("LORA", 4, "plain"),
        ("LORA", 8, "plain"),
        ("LORA", 4, "DoRA"),
        ("VERA", 4, "plain"),
        ("OFT", 4, "plain"),
        ("IA3", 8, "plain"),
    ]
    for dtype in (F32, BF16)
]
CALLS = {
    "training": lambda: torch.enable_grad(),
    "training under autocast": lambda: torch.autocast("cpu", BF16),
    "evaluation": lambda: torch.no_grad(),
}


MODES = ("numerics/mode.py", "numerics/autocast.py", "hosts/packed.py", "hosts/as_written.py")


class Dispatched(TorchDispatchMode):
    """The casts between floating dtypes: all of them, and those that stand in a line of this package."""

    def __init__(self):
        super().__init__()
        self.all, self.ours = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].is_floating_point() and result.is_floating_point():
            dtypes = (short(args[0].dtype), short(result.dtype))
            if dtypes[0] != dtypes[1]:
                self.all.add(dtypes)
                if "qlora_bf16_patch/" in innermost():
                    self.ours.add(dtypes)
        return result


def innermost():
    """The file of the innermost frame that is neither torch's nor a mode's, through which casts of others go."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename.endswith(MODES):
        frame = frame.f_back
    return frame.f_code.co_filename


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "listened to"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_cast_of_a_patch_is_told_and_one_that_is_told_was_made(recipe, call, dtype, traced):
    model, x = recipe.build().train("training" in call), hidden_states(dtype)
    told = []
    with CALLS[call](), Dispatched() as casts:
        if traced:
            with qlora_bf16_patch.trace(model) as trace:
                model(x)
            told = [((seen.given, seen.to), seen.needed) for seen in trace.casts]
            assert all(seen.path and seen.patch and seen.operation and seen.operand for seen in trace.casts)
        else:
            with listening(told):
                model(x)
    pairs = {pair for pair, _ in told}
    back = {(to, given) for (given, to), needed in told if needed}
    assert casts.ours <= pairs | back
    assert pairs <= casts.all


@contextlib.contextmanager
def listening(told):
    def heard(module, cast):
        told.append(((short(cast.given), short(cast.to)), cast.needed))

    events.listeners.append(heard)
    try:
        yield
    finally:
        events.listeners.remove(heard)


def test_what_a_layer_casts_to_compute_as_it_trained_is_no_mismatch():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(hidden_states(BF16))
        model(hidden_states(BF16))
    told = {(cast.path.rpartition("model.")[2], cast.operand, cast.patch, count) for cast, count in trace.casts.items()}
    assert told == {
        ("proj", "adapter", "peft.lora.linear4bit", 2),
        ("proj.base_layer", "bias", "bitsandbytes.linear4bit", 2),
    }
    assert {(cast.given, cast.to, cast.operation) for cast in trace.casts} == {("float32", "bfloat16", "forward")}
    assert trace.mismatches() == []
    assert "Nothing was cast where torch would have raised." in str(trace)
    assert (
        "evaluation: 1 Linear4bit had its adapter cast from float32 to bfloat16 by peft.lora.linear4bit, 2 times"
        in str(trace)
    )
    with qlora_bf16_patch.assert_dtypes(model), torch.no_grad():
        model(hidden_states(BF16))


def test_another_methods_layer_tells_what_it_computes_in():
    model = Recipe("VERA").build().eval()
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(hidden_states(F32))
    told = {(cast.operand, cast.given, cast.to) for cast in trace.casts if cast.patch == "peft.tuners"}
    there, back = ("float32", "bfloat16"), ("bfloat16", "float32")
    assert told == {("input", *there), ("adapter", *there), ("result", *back)}


def test_an_8_bit_layers_result_that_is_cast_back_is_told():
    installation = Installation("bitsandbytes.linear8bit")
    installation.on = True
    # No layer of bitsandbytes 0.50.2 gives another dtype back on a CPU.
    forward = linear8bit.forward(lambda layer, x: x.half(), installation)
    told, layer = [], kbit(8)
    with listening(told), torch.no_grad():
        assert forward(layer, hidden_states(F32)).dtype == F32
    assert told == [(("float16", "float32"), False)]


def test_adapters_that_take_no_part_are_not_said_to_be_cast():
    model = lora_model(bias=False)
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        with model.disable_adapter():
            model(hidden_states(BF16))
        model.base_model.model.proj.set_adapter([])
        model(hidden_states(BF16))
    assert not trace.casts


@pytest.mark.parametrize(
    ("method", "patch"), [("LORA", "peft.lora.autocast_output"), ("VERA", "peft.tuners.autocast_output")]
)
def test_an_option_that_gives_back_autocasts_dtype_is_told(method, patch):
    model = Recipe(method).build()
    with qlora_bf16_patch.enabled(patch), qlora_bf16_patch.trace(model) as trace:
        with torch.autocast("cpu", BF16):
            model.train()(hidden_states(F32))
    told = {(cast.operand, cast.given, cast.to) for cast in trace.casts if cast.patch == patch}
    assert told == {("result", "float32", "bfloat16")}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("method", ["LORA", "VERA"])
def test_strict_raises_in_an_adapters_layer_too_and_names_its_place(method):
    model = Recipe(method).build()
    if method == "LORA":
        model.get_base_model().proj.lora_B["default"].to(BF16)
    patch = "peft.lora.linear4bit" if method == "LORA" else "peft.tuners"
    with pytest.raises(
        CastRefused, match=rf"proj \(Linear.*\): linear computes in .*bfloat16.*float32.*{patch} would have"
    ):
        model.train()(hidden_states(F32))


def test_a_cast_in_an_adapters_layer_is_told_where_it_is_compiled():
    model = lora_model()
    model.base_model.model.proj.lora_B["default"].to(torch.bfloat16)
    torch._dynamo.reset()
    with qlora_bf16_patch.trace(model) as trace:
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 64))
    assert "peft.lora.linear4bit" in {cast.patch for cast in trace.mismatches()}
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"proj .* strict mode is on"), qlora_bf16_patch.strict():
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 64))
