"""Models with ways of copying, generating and normalizing of their own, under a trace and in a report."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import qlora_bf16_patch
from toys.layers import linear4bit
from toys.models import Toy, lora_model

X = torch.randn(2, 64)
HEAD = "base_model.model.head"
OURS = {"generate", "__reduce_ex__", "__deepcopy__"}


def pickled(module):
    return pickle.loads(pickle.dumps(module))


class Slotted(Toy):
    """Its state is a pair, as of classes with ``__slots__`` (pickle's protocol 2)."""

    def __getstate__(self):
        return dict(vars(self)), {"extra": "kept"}

    def __setstate__(self, state):
        vars(self).update(state[0])
        self.extra = state[1]["extra"]


class Anew(Toy):
    """It is made anew, without a state."""

    def __reduce__(self):
        return type(self), ()


class Listed(Toy):
    """Its state is a list."""

    def __getstate__(self):
        return [torch.nn.Module.state_dict(self)["head.weight"]]

    def __setstate__(self, state):
        self.__init__()
        self.head.weight.data = state[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", [Slotted, Anew, Listed])
def test_a_copy_in_a_block_is_as_the_class_makes_it_and_has_nothing_of_the_trace(kind, copied):
    model = kind()
    with qlora_bf16_patch.trace(model) as trace:
        other = copied(model)
        other(X.bfloat16())
    assert not trace.ran
    assert torch.equal(other.head.weight, model.head.weight)
    assert getattr(other, "extra", "kept") == "kept"
    for one in (other, model):
        assert not OURS & vars(one).keys()
        assert not any(module._forward_hooks for module in one.modules())


class Shared(Toy):
    """It is its own copy, as a tokenizer's table that all models share."""

    def __deepcopy__(self, memo):
        return self


def test_a_module_that_is_its_own_copy_is_traced_on():
    model = Shared()
    with qlora_bf16_patch.trace(model) as trace:
        assert copy.deepcopy(model) is model
        model(X.bfloat16())
    assert {"", "head"} <= {seen.path for seen in trace.ran}
    assert not OURS & vars(model).keys()


def test_a_generate_that_was_put_into_a_model_is_the_one_that_runs_and_stays():
    model, calls = lora_model(), []

    def generate(x):
        calls.append(x)
        return model(x)

    model.generate = generate
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model.generate(X)
    assert (trace.phases, len(calls), model.generate) == (("generation",), 1, generate)


class Refuses(nn.Identity):
    """A module that takes no hook with keyword arguments, as of a torch before 2.0."""

    def register_forward_pre_hook(self, hook):
        raise AssertionError


def test_a_trace_that_cannot_begin_leaves_nothing_behind():
    model = Toy()
    model.last = Refuses()
    with pytest.raises(TypeError, match="keyword argument"), qlora_bf16_patch.trace(model):
        pass
    assert not OURS & vars(model).keys()
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.last = nn.Identity()
    with qlora_bf16_patch.trace(model) as trace:  # and it is not taken for traced
        model(X.bfloat16())
    assert trace.ran


def test_a_difference_reads_as_a_sentence():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(X)
        with torch.no_grad():
            model.eval()(X)
    told = [str(one) for one in trace.compare("training", "evaluation") if one.path == HEAD]
    assert f"{HEAD} (Linear): outputs: bfloat16 | float32" in told


class Unasked(nn.Module):
    """A norm whose kernel is a GPU's, or that gives back something else than hidden states."""

    def __init__(self, kernel):
        super().__init__()
        self.weight, self.kernel = nn.Parameter(torch.ones(64)), kernel

    def forward(self, x):
        if self.kernel and x.is_meta:
            raise NotImplementedError("no kernel for meta tensors")
        y = self.weight * x
        return y if not x.is_meta else (y, None)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_norm_that_cannot_be_asked_is_taken_to_give_the_wider_dtype(kernel):
    class Normed(Toy):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.norm = nn.Embedding(8, 64, dtype=torch.bfloat16), Unasked(kernel)
            self.head = self._modules.pop("head")

        def forward(self, ids):
            return self.head(self.norm(self.proj(self.embed_tokens(ids))))

    model = lora_model(toy=Normed())
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(torch.arange(8))
    found = [(one.path, one.given, one.to) for one in qlora_bf16_patch.report(model).mismatches()]
    assert found == [(HEAD, "float32", "bfloat16")]
    assert [one.path for one in trace.mismatches()] == [HEAD]


class Embeds(Toy):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(8, 64, dtype=torch.bfloat16)
        self.proj, self.head = (self._modules.pop(name) for name in ("proj", "head"))

    def forward(self, ids):
        return self.head(self.proj(self.embed_tokens(ids)))


@pytest.mark.parametrize("adapters", [True, False])
def test_of_what_is_trained_beside_adapters_the_copy_that_is_in_use_counts(adapters):
    model = lora_model(toy=Embeds(), modules_to_save=["head"])
    head = model.get_base_model().head
    head.modules_to_save["default"].to(torch.float32)
    if not adapters:
        head.enable_adapters(False)
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(torch.arange(8))
    told = {one.path for one in qlora_bf16_patch.report(model).mismatches()}
    assert told == {one.path for one in trace.mismatches()}
    assert told == ({f"{HEAD}.modules_to_save.default"} if adapters else set())


def test_without_peft_no_parameter_is_an_adapters(monkeypatch):
    model = nn.Sequential(linear4bit(), nn.Linear(64, 8))
    monkeypatch.delitem(sys.modules, "peft")
    qlora_bf16_patch.assert_dtypes(model, {"1.weight": torch.float32})
    with pytest.raises(ValueError, match="adapter"):
        qlora_bf16_patch.assert_dtypes(model, adapters=torch.float32)
    assert "peft" not in sys.modules
