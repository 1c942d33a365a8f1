"""Models with parts that cannot be looked at, that are given no tensors, or that hold what is seldom held."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.patches import injection
from toys.layers import linear4bit
from toys.models import Model, Toy, lora_model

F32, BF16 = torch.float32, torch.bfloat16
LORA = {"r": 4, "target_modules": ["proj"]}


def notes(name="peft.boundary"):
    (row,) = (row for row in qlora_bf16_patch.status() if row.name == name)
    return row.notes


class Unfinished(nn.Module, BaseTunerLayer):
    """A third party's tuner layer that has no base layer yet."""

    def get_base_layer(self):
        raise AttributeError("there is none yet")

    def forward(self, x):
        return x @ torch.eye(64, dtype=BF16)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_a_tuner_layer_that_cannot_say_what_it_is_around_is_left_alone_and_the_model_is_mended():
    model = Model(nn.Sequential(nn.Linear(64, 64, dtype=BF16), Unfinished()))
    adapted = get_peft_model(model, LoraConfig(**LORA))
    with torch.no_grad():
        assert adapted(torch.randn(2, 64)).dtype == F32
    for patch in ("peft.boundary", "peft.tuners"):
        told = [note for note in notes(patch) if note.startswith("part.1 could not be looked at")]
        assert told == ["part.1 could not be looked at, and is left as it is: AttributeError: there is none yet"]


def test_a_failure_of_ours_leaves_a_model_as_it_is_and_is_told(monkeypatch):
    def fails(model):
        raise RuntimeError("not this one")

    monkeypatch.setattr(injection, "is_kbit_model", fails)
    head = get_peft_model(Toy(), LoraConfig(**LORA)).base_model.model.head
    assert "forward" not in vars(head)
    assert "Toy could not be looked at, and is left as it is: RuntimeError: not this one" in notes()


class OfLists(Toy):
    def forward(self, rows):
        return super().forward(torch.tensor(rows))


@pytest.mark.parametrize("autocast", [True, False])
def test_how_a_model_trains_that_is_given_no_tensors_is_seen(autocast):
    class Model(OfLists):
        pass

    Model.__name__ = f"OfLists{autocast}"
    model = lora_model(toy=Model(head=False)).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model([[1.0] * 64])
    where = "under autocast" if autocast else "outside of autocast"
    assert f"{Model.__name__} was seen to train {where}: its adapted layers evaluate and generate as they trained" in (
        notes()
    )


def test_two_adapters_on_different_layers_are_active_at_once():
    class Both(Toy):
        def __init__(self):
            super().__init__(bias=False, head=False)
            self.other = linear4bit()

        def forward(self, x):
            return self.other(self.proj(x))

    model, x = get_peft_model(Both(), LoraConfig(init_lora_weights=False, **LORA)), torch.randn(2, 64)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["other"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        outside = model.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            inside = model(x)
    assert (outside.dtype, inside.dtype) == (F32, F32)
    torch.testing.assert_close(outside, inside)


class Packs(nn.Module):
    """An LSTM that is given a packed sequence, and gives one back."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(64, 8, batch_first=True, dtype=BF16)

    def forward(self, x):
        lengths = torch.tensor([3, 2])
        return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))


def test_a_packed_sequence_comes_back_in_the_dtype_that_it_was_given_in():
    model = lora_model(toy=Model(Packs()))
    with torch.no_grad():
        result, (hidden, cell) = model(torch.randn(2, 3, 64))
    assert isinstance(result, nn.utils.rnn.PackedSequence)
    assert (result.data.dtype, hidden.dtype, cell.dtype) == (F32, F32, F32)


@pytest.mark.parametrize("ids", [torch.arange(64), torch.zeros(64, dtype=torch.bool)], ids=["integers", "bool"])
def test_a_linear_layer_that_is_given_no_activations_says_what_torch_says(ids):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 8, dtype=BF16)

        def forward(self, x):
            return self.head(ids)

    model, head = lora_model(toy=Model(Wrong())), nn.Linear(64, 8, dtype=BF16)
    with pytest.raises(RuntimeError) as plain:
        head(ids)
    with pytest.raises(RuntimeError) as patched:
        model(torch.randn(2, 64))
    assert str(patched.value) == str(plain.value)


def test_inputs_that_the_user_wants_uncast_are_mended_where_torch_refuses_them():
    model, x = lora_model(adapter_dtype=BF16, toy=Toy(head=False)), torch.randn(2, 64)
    with disable_input_dtype_casting(model):
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="dtype"):
            model(x)
        result = model(x)
    assert result.dtype == F32
    result.sum().backward()
