"""Each entry of the table of modules with a backward of their own, with it and without."""

import importlib

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, YosoConfig, YosoForSequenceClassification

import qlora_bf16_patch  # noqa: F401
from qlora_bf16_patch.hosts import own_backward
from toys.layers import BF16, F16, hidden_states
from toys.methods import Recipe

# Third parties about each other: checkpointing under a new name, bitsandbytes' own cast.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def loha():
    return Recipe("LOHA", bits=8, adapter_dtype=F16).build().train(), hidden_states()


def yoso(tmp_path):
    """As the QLoRA script prepares it, in training under autocast: float32 hidden states."""
    config = YosoConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=100, use_cuda=False
    )
    YosoForSequenceClassification(config).to(BF16).save_pretrained(tmp_path)
    model = YosoForSequenceClassification.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=BF16),
        dtype=BF16,
        device_map={"": "cpu"},
    )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["query", "key", "value"]))
    return model.train(), torch.arange(16)[None]


def step(model, x):
    with torch.autocast("cpu", BF16):
        result = model(x)
    (result if isinstance(result, torch.Tensor) else result.logits).float().sum().backward()


def assert_needs_its_entry(monkeypatch, name, make):
    step(*make())
    assert name in own_backward.OWN_BACKWARD
    monkeypatch.delitem(own_backward.OWN_BACKWARD, name)
    model, x = make()
    with pytest.raises(RuntimeError, match="type"):
        step(model, x)


def test_loha_needs_its_entry(monkeypatch):
    assert_needs_its_entry(monkeypatch, "peft.tuners.loha.layer.Linear", loha)


def test_yoso_needs_its_entry(monkeypatch, tmp_path):
    name = "transformers.models.yoso.modeling_yoso.YosoSelfAttention"
    assert_needs_its_entry(monkeypatch, name, lambda: yoso(tmp_path))


@pytest.mark.parametrize("name", own_backward.OWN_BACKWARD)
def test_each_entry_names_a_function_that_is_there(name):
    module, _, cls = name.rpartition(".")
    found = importlib.import_module(module)
    assert hasattr(found, cls)
    assert issubclass(getattr(found, own_backward.OWN_BACKWARD[name]), torch.autograd.Function)
