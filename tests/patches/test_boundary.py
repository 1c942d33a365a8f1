"""peft.boundary: the unquantized modules of a k-bit model, where torch would raise and nowhere else."""

import copy
import inspect
import io
import itertools
import logging
import pickle

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, HALF, flattened, linear4bit
from toys.models import Alone, Model, Toy, lora_model
from toys.parts import Experts, Router, Twice

from ..checks import assert_unchanged, state

NAME = "peft.boundary"


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, hidden_states):
        return self.weight * hidden_states


MODULES = {
    "a head": lambda: nn.Linear(64, 8),
    "a head without a bias": lambda: nn.Linear(64, 8, bias=False),
    "a convolution over time": lambda: nn.Conv1d(3, 2, 3),
    "a patch embedding": lambda: nn.Conv2d(3, 2, 3),
    "a layer norm": lambda: nn.LayerNorm(64),
    "a group norm": lambda: nn.GroupNorm(1, 3),
    "a batch norm": lambda: nn.BatchNorm1d(3),
    "an RMS norm": Norm,
    "a router": Router,
    "experts": Experts,
}
ROWS = {"a router": [2], "experts": [2], "a patch embedding": [14], "a layer norm": [14]}
CASES = [
    pytest.param(
        kind,
        autocast,
        id=f"{kind}, {'under' if autocast else 'outside'} autocast",
        marks=[pytest.mark.failure(row=row) for row in ([22] if autocast and "norm" in kind else ROWS.get(kind, []))],
    )
    for kind in MODULES
    for autocast in (False, True)
]
SHAPES = {"a patch embedding": (2, 3, 8, 8), "experts": (1, 3, 64)}


def attempt(module, x, autocast):
    """Every tensor that comes out; None where torch refuses the dtypes."""
    with torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
        try:
            results = module(x)
        except RuntimeError as error:
            assert any(word in str(error) for word in ("dtype", "scalar type", "should be the same", "to have type")), (
                error
            )
            return None
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize(("kind", "autocast"), CASES)
def test_a_module_is_touched_exactly_where_torch_would_have_raised(kind, autocast):
    raised = set()
    for dtype, weight_dtype in itertools.product(FLOATING, repeat=2):
        torch.manual_seed(0)
        model = lora_model(toy=Alone(MODULES[kind]().to(weight_dtype)))
        x, before = torch.randn(SHAPES.get(kind, (2, 3, 64))).to(dtype), state(model)
        with qlora_bf16_patch.disabled(NAME):
            unpatched = attempt(model, x, autocast)
        patched = attempt(model, x, autocast)
        if unpatched is None:
            raised.add((dtype, weight_dtype))
            assert patched[0].dtype == dtype
            reference = copy.deepcopy(model).double()(x.double())
            reference = reference[0] if isinstance(reference, tuple) else reference
            torch.testing.assert_close(patched[0].double(), reference, atol=0.2, rtol=0.1)
        else:
            assert [(t.dtype, t.tolist()) for t in patched] == [(t.dtype, t.tolist()) for t in unpatched]
        assert_unchanged(model, before)
    # CUDA's autocast covers the norms that the CPU's does not; neither covers a batch norm.
    uncovered = "a batch norm" if devices.TYPE == "cuda" else "norm"
    assert bool(raised) == (kind != "an RMS norm" and (not autocast or uncovered in kind))


def normalized(dtype):
    norm = nn.BatchNorm1d(3, dtype=dtype)
    norm.running_mean, norm.running_var = (torch.rand(3).to(torch.bfloat16) for _ in range(2))
    return norm


@pytest.mark.failure(row=23)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_norm_whose_statistics_have_another_dtype_updates_them_in_their_own(dtype, training):
    torch.manual_seed(0)
    norm, x = normalized(torch.float32), torch.randn(8, 3, 4).to(dtype)
    reference = copy.deepcopy(norm).double().train(training)
    model = lora_model(toy=Alone(norm)).train(training)
    if dtype == torch.float32 or devices.NAME != "cuda":  # cuDNN takes a half precision with any
        refusal = r"scalar type|mixed dtype|to have the same type"
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match=refusal):
            model(x)
    for _ in range(2):
        result, expected = model(x), reference(x.double())
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, atol=5e-2, rtol=5e-2)
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean.double(), reference.running_mean, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(norm.running_var.double(), reference.running_var, atol=2e-2, rtol=2e-2)


RECURRENT = [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell]


@pytest.mark.failure(row=28)
@pytest.mark.parametrize("cls", RECURRENT, ids=lambda cls: cls.__name__)
def test_a_recurrent_layer_takes_what_torch_compares_in_python_and_refuses(cls):
    torch.manual_seed(0)
    layer, x = cls(64, 8).to(torch.bfloat16), torch.randn(3, 64)
    model = lora_model(toy=Alone(layer))
    with qlora_bf16_patch.disabled(), pytest.raises((RuntimeError, ValueError), match="type"):
        model(x)
    result, expected = model(x), layer.double()(x.double())
    while isinstance(result, tuple):
        result, expected = result[0], expected[0]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, atol=2e-2, rtol=2e-2)


class Pooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


@pytest.mark.failure(row=24)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "make",
    [Pooling, lambda: nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)],
    ids=["attention", "encoder layer"],
)
def test_torchs_own_attention_modules_are_mended(make, gradients):
    torch.manual_seed(0)
    part, x = make().to(torch.bfloat16).eval(), torch.randn(2, 5, 64)
    model = lora_model(toy=Alone(part)).eval()
    with torch.set_grad_enabled(gradients):
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="type"):
            model(x)
        results = [model(x) for _ in range(2)]
        expected = copy.deepcopy(part).double()(x.double())
    for result in results:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, atol=5e-2, rtol=5e-2)


def test_the_head_of_the_report_takes_float32_hidden_states_and_a_toggle_is_honoured():
    model, x = lora_model(), torch.randn(2, 64)
    assert model(x).dtype == torch.float32
    with qlora_bf16_patch.disabled(NAME), pytest.raises(RuntimeError, match="same dtype"):
        model(x)
    assert model(x).shape == (2, 8)


def test_a_copy_in_modules_to_save_is_covered():
    model = get_peft_model(Toy(), LoraConfig(r=4, target_modules=["proj"], modules_to_save=["head"])).eval()
    head = model.base_model.model.head.modules_to_save["default"]
    head.to(torch.bfloat16)
    assert model(torch.randn(2, 64)).dtype == torch.float32
    with qlora_bf16_patch.disabled(NAME), pytest.raises(RuntimeError, match="same dtype"):
        model(torch.randn(2, 64))


@pytest.mark.failure(row=2)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_parameters_behind_pefts_param_wrapper_are_covered(dtype):
    config = LoraConfig(r=2, target_modules=["proj"], target_parameters=["part.gate"], init_lora_weights=False)
    model = get_peft_model(Alone(Experts().to(dtype)), config).eval()
    x = torch.randn(1, 3, 64)
    assert type(model.base_model.model.part).__name__ == "ParamWrapper"
    assert model(x)[0].dtype == torch.float32
    with qlora_bf16_patch.disabled(NAME), pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        model(x)


def test_hidden_states_given_by_keyword_are_covered():
    model = lora_model(toy=Alone(Router().bfloat16()))
    assert model(hidden_states=torch.randn(2, 64)).dtype == torch.float32


def test_what_a_model_upcasts_on_purpose_stays_upcast():
    model = lora_model(toy=Alone(Experts().bfloat16()))
    assert [t.dtype for t in model(torch.randn(1, 3, 64))] == [torch.float32, torch.float32]
    assert [t.dtype for t in model(torch.randn(1, 3, 64).bfloat16())] == [torch.bfloat16, torch.float32]


def test_modules_outside_the_model_are_left_alone():
    lora_model()
    other, x = nn.Linear(64, 8).bfloat16(), torch.randn(2, 64)
    assert "forward" not in vars(other)
    assert nn.Linear.forward.__module__ == "torch.nn.modules.linear"
    with pytest.raises(RuntimeError, match="same dtype"):
        other(x)


def test_a_model_without_quantized_layers_is_left_alone():
    model = get_peft_model(nn.ModuleDict({"proj": nn.Linear(64, 8)}), LoraConfig(target_modules=["proj"]))
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_deep_copy_uses_its_own_weights():
    model, x = lora_model(), torch.randn(2, 64)
    other = copy.deepcopy(model)
    other.base_model.model.head.weight.data.zero_()
    assert not other(x).any()
    assert model(x).any()


def test_a_pickled_module_loads_as_its_class_without_the_patch():
    head = lora_model().base_model.model.head
    loaded = pickle.loads(pickle.dumps(head))
    assert torch.equal(loaded.weight, head.weight)
    assert loaded.forward.__func__ is nn.Linear.forward


def test_uninstalled_no_module_keeps_a_wrapper_and_enable_brings_them_back():
    model, x = lora_model(), torch.randn(2, 64)
    head = model.base_model.model.head
    qlora_bf16_patch.uninstall()
    try:
        assert "forward" not in vars(head)
        with pytest.raises(RuntimeError, match="same dtype"):
            model(x)
    finally:
        qlora_bf16_patch.reset()
    assert model(x).dtype == torch.float32


def test_another_partys_forward_on_the_module_runs_beneath_and_comes_back():
    toy = Toy()
    theirs = toy.head.forward = lambda x: nn.Linear.forward(toy.head, x) + 1
    model, x = lora_model(toy=toy), torch.randn(2, 64)
    with qlora_bf16_patch.disabled(), torch.autocast(devices.TYPE, torch.bfloat16):
        expected = model(x)
    torch.testing.assert_close(model(x).bfloat16(), expected, atol=2e-2, rtol=2e-2)
    qlora_bf16_patch.uninstall()
    try:
        assert vars(toy.head)["forward"] is theirs
    finally:
        qlora_bf16_patch.reset()


@pytest.mark.parametrize("how", ["flattened by FSDP", "pruned", "with a weight norm"])
def test_a_head_whose_weight_is_no_parameter_is_covered(how):
    make = {
        "flattened by FSDP": lambda head: flattened(head, "weight"),
        "pruned": lambda head: prune.l1_unstructured(head, "weight", 0.5),
        "with a weight norm": nn.utils.parametrizations.weight_norm,
    }[how]
    before, after = Toy(), lora_model().base_model.model.head
    make(before.head)
    for head in (lora_model(toy=before).base_model.model.head, make(after)):
        assert head(torch.randn(2, 64)).dtype == torch.float32
        assert head(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16


class Dequantized(nn.Parameter):
    """As the weights of other quantizers: its products take any dtype, and are computed in float32."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*(value if value is None else value.float() for value in args)).to(args[0].dtype)
        return super().__torch_function__(func, types, args, kwargs or {})


class Renamed(nn.Parameter):
    """A subclass whose products are torch's own."""


@pytest.mark.parametrize("training", [False, True])
def test_a_weight_of_a_subclass_that_takes_mixed_dtypes_keeps_its_bits(training):
    part = nn.Linear(64, 8)
    part.weight = Dequantized(part.weight.data.bfloat16(), requires_grad=False)
    model, x = lora_model(toy=Model(part)).train(training), torch.randn(2, 3, 64)
    with torch.set_grad_enabled(training):
        expected = nn.functional.linear(model.base_model.model.proj(x), part.weight.data.float(), part.bias)
        assert torch.equal(model(x), expected)


@pytest.mark.failure(row=1)
def test_a_weight_of_a_subclass_that_torch_refuses_is_cast_to():
    part = nn.Linear(64, 8, bias=False)
    part.weight = Renamed(part.weight.data.bfloat16())
    model, x = lora_model(toy=Model(part)), torch.randn(2, 3, 64)
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
        model(x)
    assert model(x).dtype == torch.float32


def test_a_head_that_is_given_another_class_has_that_forward():
    head, x = lora_model().base_model.model.head, torch.randn(2, 64).bfloat16()
    once = head(x)
    head.__class__ = Twice
    assert torch.equal(head(x), 2 * once)


def test_a_profiler_in_the_place_of_torchs_linear_sees_the_head(monkeypatch):
    head, linear, calls = lora_model().base_model.model.head, nn.functional.linear, []
    monkeypatch.setattr(nn.functional, "linear", lambda *args: calls.append(1) or linear(*args))
    head(torch.randn(2, 64).bfloat16())
    assert calls == [1]


def test_uninstalled_a_module_that_accelerate_hooked_after_the_patch_runs():
    model, x = lora_model(), torch.randn(2, 64).bfloat16()
    expected = model(x)
    add_hook_to_module(model.base_model.model.head, ModelHook())
    qlora_bf16_patch.uninstall()
    try:
        assert model(x).dtype == torch.bfloat16
    finally:
        qlora_bf16_patch.reset()
    assert torch.equal(model(x), expected)
    assert model.base_model.model.head(x.float()).dtype == torch.float32


class Counting(ModelHook):
    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        Counting.calls += 1
        return args, kwargs


def test_modules_with_accelerates_hooks_are_covered_and_the_hooks_run():
    toy = Toy()
    add_hook_to_module(toy.head, Counting())  # as dispatch_model does, before PEFT's injection
    model, x = lora_model(toy=toy), torch.randn(2, 64)
    calls = Counting.calls
    assert model(x).dtype == torch.float32
    assert Counting.calls == calls + 1
    assert copy.deepcopy(model)(x).dtype == torch.float32


def test_hooks_that_accelerate_attaches_later_stay_above_through_toggles_and_new_adapters():
    model, x = lora_model(), torch.randn(2, 64)
    add_hook_to_module(model.base_model.model.head, Counting())
    expected, calls = model(x), Counting.calls
    with qlora_bf16_patch.disabled():
        pass
    model.add_adapter("other", model.peft_config["default"])
    qlora_bf16_patch.guard(model)
    assert torch.equal(model(x), expected)
    assert Counting.calls == calls + 1


def test_a_saved_model_is_covered_again_by_guard():
    buffer, x = io.BytesIO(), torch.randn(2, 64)
    torch.save(lora_model(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with pytest.raises(RuntimeError, match="same dtype"):
        loaded(x)
    assert qlora_bf16_patch.guard(loaded)(x).dtype == torch.float32


@pytest.mark.failure(row=16)
def test_guard_reaches_a_quantized_layer_that_accelerate_hooked_before_the_patch():
    layer = linear4bit()
    wrapper = type(layer).forward
    type(layer).forward = inspect.unwrap(wrapper)  # as before the import
    try:
        add_hook_to_module(layer, ModelHook())
    finally:
        type(layer).forward = wrapper
    layer(torch.ones(2, 64, dtype=torch.bool))  # bypasses the patch
    assert vars(layer)["_old_forward"].__func__ is inspect.unwrap(wrapper)
    qlora_bf16_patch.guard(nn.Sequential(layer))
    with pytest.raises(TypeError, match="storage dtype"):
        layer(torch.ones(2, 64, dtype=torch.bool))


def test_guard_mends_a_model_without_peft():
    model, x = Toy(), torch.randn(2, 64)
    with pytest.raises(RuntimeError, match="same dtype"):
        model(x)
    assert qlora_bf16_patch.guard(model) is model
    assert model(x).dtype == torch.float32


def test_guard_refuses_a_model_that_has_nothing_to_guard():
    with pytest.raises(ValueError, match="Linear has no bitsandbytes 4- or 8-bit layer"):
        qlora_bf16_patch.guard(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="was given str"):
        qlora_bf16_patch.guard("a model")


def test_a_cast_is_told_once_per_module_with_its_path(caplog):
    model = lora_model()
    with caplog.at_level(logging.INFO, "qlora_bf16_patch"):
        for _ in range(2):
            model(torch.randn(2, 64))
    assert [record.getMessage() for record in caplog.records] == [
        "head: torch.float32 hidden states are cast to its torch.bfloat16 weights"
    ]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("part", [nn.Linear(64, 8), Router()], ids=["torch's own", "a model's own"])
def test_strict_raises_where_a_cast_would_have_papered_over_a_mismatch(part):
    model = lora_model(toy=Alone(part.bfloat16()))
    with pytest.raises(TypeError, match=rf"^part \({type(part).__name__}\).*bfloat16.*float32.*peft.boundary"):
        model(torch.randn(2, 64))
    assert model(torch.randn(2, 64).bfloat16()).dtype == torch.bfloat16


@pytest.mark.failure(row=17)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_floating_token_ids_are_an_error_that_says_what_was_cast(dtype):
    model = lora_model(toy=Alone(nn.Embedding(300, 64)))
    with pytest.raises(TypeError, match=rf"part \(Embedding\) was given {dtype} token ids of shape \(1, 3\)"):
        model(torch.tensor([[257, 258, 259]]).to(dtype))
    assert model(torch.tensor([[257]])).shape == (1, 1, 64)


class Frozen(nn.Module):
    """It switches gradients off for a part of its own."""

    is_loaded_in_4bit = True

    def __init__(self):
        super().__init__()
        self.proj, self.tower = linear4bit(bias=False), nn.Identity()

    def forward(self, x):
        with torch.no_grad():
            frozen = self.proj(x)
        return frozen + checkpoint(self.proj, x, use_reentrant=True)


@pytest.mark.parametrize("training", [False, True])
def test_what_a_call_with_gradients_computes_without_them_is_upstreams_too(training):
    model, x = lora_model(toy=Frozen()).train(training), torch.randn(2, 64, requires_grad=True)
    with qlora_bf16_patch.disabled():
        expected = model(x)
    assert torch.equal(model(x), expected)
