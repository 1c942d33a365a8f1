"""A registered model can be copied and saved as an unpatched one; ``guard`` registers what was loaded."""

import copy
import functools
import gc
import io
import pickle
import subprocess
import sys
import weakref

import cloudpickle
import dill
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn

import qlora_bf16_patch
from toys.layers import linear4bit
from toys.llama import TOY, llama
from toys.models import Model, Toy, lora_model

# transformers and PEFT about each other: checkpointing under a new name.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Merge lora module to 4-bit")


def saved_by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "dill": lambda model: dill.loads(dill.dumps(model)),
    "cloudpickle": lambda model: pickle.loads(cloudpickle.dumps(model)),
    "torch.save": saved_by_torch,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_was_saved_and_loaded_runs_and_guard_registers_it(way):
    model, x = lora_model(toy=Toy(head=True)).eval(), torch.randn(2, 64)
    with torch.no_grad():
        expected = model(x)
        loaded = WAYS[way](model)
        assert loaded(x.to(torch.bfloat16)).shape == expected.shape
        assert torch.equal(qlora_bf16_patch.guard(loaded)(x), expected)


def test_a_function_that_uses_a_model_can_be_hashed_by_datasets():
    fingerprint = pytest.importorskip("datasets.fingerprint")
    model = lora_model()

    def embed(batch):
        return model(batch)

    before = fingerprint.Hasher.hash(embed)
    with torch.no_grad():
        model(torch.randn(2, 64))
    assert fingerprint.Hasher.hash(embed) == before


def hooked(model):
    return add_hook_to_module(model, ModelHook())


def doubled(model):
    original = model.forward

    @functools.wraps(original)
    def forward(x):
        return original(x) * 2

    model.forward = forward
    return model


@pytest.mark.parametrize("change", [hooked, doubled], ids=lambda change: change.__name__)
def test_a_model_whose_forward_others_have_wrapped_is_copied_and_saved(change):
    model, x = lora_model(), torch.randn(2, 64)
    model(x)
    change(model.base_model.model)
    with torch.no_grad():
        for copied in (copy.deepcopy(model), pickle.loads(cloudpickle.dumps(model))):
            assert copied(x.to(torch.bfloat16)).shape == (2, 8)


class Switches(Toy):
    """It sets a forward of its own on each object."""

    def __init__(self):
        super().__init__()
        self.forward = self.forward_fast

    def forward_fast(self, x):
        return self.head(self.proj(x)) * 3


def test_a_forward_of_the_objects_own_is_saved():
    model, x = lora_model(toy=Switches()), torch.randn(2, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_a_shallow_copy_of_a_model_runs_on_itself():
    model, x = lora_model().base_model.model, torch.randn(2, 64)
    with torch.no_grad():
        model(x)
        copied = copy.copy(model)
        copied._modules = {**model._modules, "head": nn.Linear(64, 3, dtype=torch.bfloat16)}
        assert copied(x).shape == (2, 3)
        assert model(x).shape == (2, 8)


class Quantizes(nn.Module):
    """It reads a packed weight's dtype, and casts other values to integers of its own."""

    def __init__(self):
        super().__init__()
        self.layer = linear4bit()

    def forward(self, x):
        if self.layer.weight.dtype == torch.float64:
            x = x + 1
        return (x * 10).to(torch.long)


def test_integers_that_a_model_returns_hold_nothing_of_ours():
    codes = lora_model(toy=Model(Quantizes()))(torch.randn(2, 64))
    assert vars(codes) == {}


def test_an_embedding_with_a_forward_of_its_own_may_be_given_floats():
    embedding = nn.Embedding(64, 8)
    embedding.forward = lambda weights: weights @ embedding.weight
    model = lora_model(toy=Model(embedding))
    assert model(torch.randn(2, 64)).shape == (2, 8)


SPAWNED = """
import multiprocessing
import torch
from toys.models import lora_model

def run(model):
    return float(model(torch.ones(2, 64, dtype=torch.bfloat16)).sum())

if __name__ == "__main__":
    model = lora_model().eval()
    with torch.no_grad():
        model(torch.ones(2, 64))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print("ran", pool.apply(run, (model,)) is not None)
"""


def test_a_model_reaches_a_process_that_multiprocessing_spawns(tmp_path):
    file = tmp_path / "spawned.py"
    file.write_text("import qlora_bf16_patch\n" + SPAWNED)
    call = [sys.executable, "-W", "ignore", str(file)]
    result = subprocess.run(call, capture_output=True, text=True, env=with_toys())
    assert "ran True" in result.stdout, result.stderr


def with_toys():
    import os
    from pathlib import Path

    import toys

    return {**os.environ, "PYTHONPATH": str(Path(toys.__file__).parents[1])}


def test_a_deep_copy_runs_on_its_own_modules_and_is_restored_with_the_others():
    model, x = lora_model(), torch.randn(2, 64)
    model(x)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.base_model.model.head.weight.zero_()
        assert not copied(x).any()
        assert model(x).any()
    try:
        qlora_bf16_patch.uninstall()
        assert not any("forward" in vars(module) for module in (*copied.modules(), *model.modules()))
    finally:
        qlora_bf16_patch.reset()


AFTER = {
    "as it is": lambda model: model,
    "unload": lambda model: model.unload(),
    "merge_and_unload": lambda model: model.merge_and_unload(),
}


@pytest.mark.parametrize("after", AFTER)
def test_a_model_is_freed_at_once_where_nobody_uses_it(after):
    model = llama(TOY, "plain")
    ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
    model(ids, labels=ids).loss.backward()
    model = AFTER[after](model)
    model(ids)
    # A packed weight refers to itself by bitsandbytes' own quant state, as without the shim.
    kept = [weakref.ref(parameter) for parameter in model.parameters() if type(parameter) is torch.nn.Parameter]
    gc.collect()
    gc.disable()
    try:
        del model
        assert [reference() for reference in kept if reference() is not None] == []
    finally:
        gc.enable()


def test_guard_registers_a_forward_that_was_set_on_an_instance_after_the_model_was_registered():
    model, x = lora_model().eval(), torch.randn(2, 64)
    inner = model.base_model.model
    inner.forward = lambda x: inner.head(inner.proj(x)) @ torch.eye(8, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        model(x)
    assert qlora_bf16_patch.guard(model)(x).dtype == torch.float32


def test_a_model_is_adapted_again_and_each_module_has_one_forward_of_ours():
    model = get_peft_model(Toy(), LoraConfig(r=4, target_modules=["proj"]))
    model.add_adapter("other", LoraConfig(r=4, target_modules=["proj"]))
    qlora_bf16_patch.guard(model.base_model.model)
    assert vars(model.base_model.model)["forward"].shadowed is None
