"""Contracts F and H: other parties' patches run as often as without ours, and nothing that is not ours breaks."""

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
import types
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit
from torch import nn
from torch.nn.utils import parametrizations

import qlora_bf16_patch
from qlora_bf16_patch.hosts import lora as host
from qlora_bf16_patch.patches import boundary
from toys import devices
from toys.layers import linear4bit
from toys.models import Alone, Toy, lora_model
from toys.parts import Twice


def run(code):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(params=["around", "in the place of"])
def theirs(request, monkeypatch):
    """Another party's ``nn.Linear.forward``, put there after the patches; the modules that it was called for."""
    original, calls = nn.Linear.forward, []

    @functools.wraps(original)
    def around(self, input):
        calls.append(self)
        return original(self, input)

    def instead(self, input):
        calls.append(self)
        return nn.functional.linear(input, self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", around if request.param == "around" else instead)
    return calls


@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
def test_anothers_linear_forward_is_called_as_often_as_without_the_patches(theirs, autocast, gradients):
    model, x = lora_model(torch.bfloat16), torch.randn(2, 64).bfloat16()
    with torch.set_grad_enabled(gradients), torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
        for _ in range(2):
            model(x)
    layer = model.base_model.model
    assert theirs == [layer.proj.lora_A["default"], layer.proj.lora_B["default"], layer.head] * 2


def test_anothers_linear_forward_that_was_there_before_is_called_as_often():
    code = """
    from torch import nn
    original, calls = nn.Linear.forward, []
    nn.Linear.forward = lambda self, input: calls.append(self) or original(self, input)

    import torch
    from toys.models import lora_model
    model = lora_model(torch.bfloat16)
    with torch.no_grad():
        model(torch.randn(2, 64).bfloat16())
        model.base_model.model.head(torch.randn(2, 64).bfloat16())
    print(len(calls))
    """
    assert run(code).strip() == "4"


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("parametrize", [parametrizations.spectral_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrized_weight_is_computed_as_often_as_without_the_patches(parametrize, when, training):
    def computed(dtype):
        torch.manual_seed(0)
        head = nn.Linear(64, 8)
        head = parametrize(head) if when == "before" else head
        model = lora_model(toy=Alone(head)).train(training)
        head = head if when == "before" else parametrize(head)
        calls = []
        head.parametrizations.weight.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):
            model(torch.randn(2, 64).to(dtype))
        return len(calls), head.parametrizations.state_dict()

    with qlora_bf16_patch.disabled():
        calls, state = computed(torch.float32)
    for dtype in (torch.float32, torch.bfloat16):  # the second needs a cast
        patched_calls, patched = computed(dtype)
        assert patched_calls == calls == 2
        assert all(torch.equal(patched[name], value) for name, value in state.items())


def casts_itself(self, input):
    """A forward that takes what torch's refuses, and leaves the result in the weights' dtype."""
    return nn.functional.linear(input.to(self.weight.dtype), self.weight)


@pytest.mark.parametrize("where", ["class, before", "class, after", "object, before", "object, after"])
def test_another_partys_forward_that_casts_by_itself_is_left_as_it_is(where, monkeypatch):
    toy = Toy()

    def theirs():
        if where.startswith("class"):
            monkeypatch.setattr(nn.Linear, "forward", casts_itself)
        else:
            toy.head.forward = types.MethodType(casts_itself, toy.head)

    if "before" in where:
        theirs()
    model = lora_model(toy=toy).train()
    if "after" in where:
        theirs()
    with qlora_bf16_patch.disabled():
        expected = model(torch.randn(2, 64))
    for _ in range(2):
        assert model(torch.randn(2, 64)).dtype == expected.dtype == torch.bfloat16


class Pair(nn.Module):
    """A matrix of its own, which PEFT adapts, and a 4-bit layer; its result is no tensor."""

    def __init__(self):
        super().__init__()
        self.weight, self.layer = nn.Parameter(torch.randn(64, 64)), linear4bit()

    def forward(self, x):
        x = self.layer(x)
        return x @ self.weight, x


def test_an_adapted_module_that_holds_a_k_bit_layer_is_none():
    config = LoraConfig(r=4, target_parameters=["pair.weight"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(OrderedDict(pair=Pair())), config).train()
    x = torch.randn(2, 64)
    with qlora_bf16_patch.disabled():
        expected = model(x)
    for ours, theirs in zip(model(x), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_copied_head_of_another_class_is_guarded_once():
    model = copy.deepcopy(lora_model())
    head, x = model.base_model.model.head, torch.randn(2, 64)
    once = head(x)
    head.__class__ = Twice
    qlora_bf16_patch.guard(model)
    assert torch.equal(head(x), 2 * once)


def test_a_module_that_cannot_be_looked_at_is_left_alone_and_told(monkeypatch):
    model, look = Alone(nn.Linear(64, 64)), boundary._forward_class
    model.odd = nn.Bilinear(2, 2, 2)
    monkeypatch.setattr(boundary, "_forward_class", lambda cls: 1 / 0 if cls is nn.Bilinear else look(cls))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["proj"]))
    assert adapted(torch.randn(2, 64)).shape == (2, 64)
    (row,) = (row for row in qlora_bf16_patch.status() if row.name == "peft.boundary")
    assert any(note.startswith("odd could not be looked at, and is left as it is") for note in row.notes)


def test_a_layout_of_lora_that_was_never_looked_at_takes_upstreams_forward_and_has_the_same_bits(monkeypatch):
    layer, x = lora_model().base_model.model.proj, torch.randn(2, 64)
    with torch.no_grad():
        expected, regions = layer(x), []
        layer.base_layer.register_forward_hook(lambda *_: regions.append(torch.is_autocast_enabled(devices.TYPE)))
        monkeypatch.setattr(Linear4bit, "other_param_names", (*Linear4bit.other_param_names, "of_tomorrow"))
        assert host.plain_adapters(layer, x) is None
        assert torch.equal(layer(x), expected)
    assert regions == [True]


def test_a_torch_without_its_newer_private_names_is_patched():
    code = """
    import torch.nn.modules.module as module
    vars(module).pop("_has_any_global_hook", None)  # came with torch 2.8

    import qlora_bf16_patch, peft.tuners.lora.bnb
    print({row.name: row.state for row in qlora_bf16_patch.status()}["peft.lora.linear4bit"])
    """
    assert run(code.replace("import torch", "import qlora_bf16_patch, torch", 1)).strip() == "active"


PICKLED = """
import pickle, sys, torch, qlora_bf16_patch
model = pickle.load(open(sys.argv[1], "rb"))
x = torch.randn(2, 64)
try:
    model(x)
except RuntimeError as error:
    print("dtype" in str(error))
print(any("qlora_bf16_patch.guard(model)" in note for row in qlora_bf16_patch.status() for note in row.notes))
print(qlora_bf16_patch.guard(model)(x).dtype)
"""


def test_a_model_that_was_pickled_into_another_process_is_told_and_guard_mends_it(tmp_path):
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(lora_model()))
    result = subprocess.run([sys.executable, "-c", PICKLED, str(file)], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True", "torch.float32"], result.stderr


def test_a_compute_dtype_left_at_float32_is_told_when_the_model_is_taken_in():
    code = """
    import qlora_bf16_patch, torch
    from toys.models import Toy
    from bitsandbytes.nn import Params4bit
    from peft import LoraConfig, get_peft_model

    toy = Toy(compute_dtype=torch.float32)
    weight = torch.randn(64, 64).bfloat16()
    toy.proj.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=toy.proj)
    get_peft_model(toy.to("cpu"), LoraConfig(r=4, target_modules=["proj"]))
    for row in qlora_bf16_patch.status():
        print(row.name, *row.notes)
    """
    (line,) = (line for line in run(code).splitlines() if line.startswith("peft.boundary"))
    for advice in ("BitsAndBytesConfig", "--dtype bfloat16 in TRL", "lm_eval", "bnb_4bit_compute_dtype"):
        assert advice in line
