"""A program that works never sees the function mode, in its first call either."""

import types

import pytest
import torch
from torch import nn
from torch.overrides import has_torch_function

import qlora_bf16_patch
from toys import devices
from toys.models import Alone, Model, lora_model

F32, BF16 = torch.float32, torch.bfloat16


class Encoder(nn.Module):
    def __init__(self, dtype=BF16):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dtype=dtype)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, mask, cache=None):
        return self.encoder(x, src_key_padding_mask=mask)


class Attention(nn.Module):
    def __init__(self, dtype=BF16):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True, dtype=dtype)

    def forward(self, x, mask, cache=None):
        return self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


def fast(x):
    """As code that has a kernel of its own where nobody overrides torch's functions."""
    return x + 1 if has_torch_function((x,)) else x


class Asks(nn.Module):
    def forward(self, x, mask, cache=None):
        return fast(x)


class Subclassed(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OfASubclass(Attention):
    def __init__(self):
        super().__init__()
        self.attention = Subclassed(64, 4, batch_first=True, dtype=BF16)


helpers = types.ModuleType("helpers")
helpers.fast = types.FunctionType(fast.__code__, {**globals(), "__name__": "helpers"})


class AsksByAModule(nn.Module):
    def forward(self, x, mask, cache=None):
        return helpers.fast(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("cache", [None, []], ids=["tensors", "a list"])
@pytest.mark.parametrize("part", [Encoder, Attention, Asks, OfASubclass, AsksByAModule], ids=lambda cls: cls.__name__)
def test_modules_that_ask_for_a_function_mode_find_none_where_all_dtypes_agree(part, cache):
    torch.manual_seed(0)
    model = lora_model(toy=Alone(part()), bias=False).eval()
    x, mask = torch.randn(2, 6, 64, dtype=BF16), torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 3:] = True
    with torch.no_grad():
        with qlora_bf16_patch.disabled():
            unpatched = model(x, mask, cache)
        for _ in range(2):
            assert torch.equal(model(x, mask, cache), unpatched)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("part", [Encoder, Attention], ids=lambda cls: cls.__name__)
def test_they_are_fixed_where_dtypes_differ(part, gradients):
    model = lora_model(toy=Model(part(F32)), bias=False).eval()
    x, mask = torch.randn(2, 6, 64, dtype=BF16), torch.zeros(2, 6, dtype=torch.bool)
    with torch.set_grad_enabled(gradients):
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="type"):
            model(x, mask)
        for _ in range(2):
            assert model(x, mask).isfinite().all()


def test_a_call_of_a_known_kind_runs_without_the_mode():
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(len(torch.overrides._get_current_function_mode_stack()))
            return x

    model = lora_model(toy=Model(Looks()), bias=False)
    with torch.autocast(devices.TYPE, BF16):
        for _ in range(3):
            model(torch.randn(2, 64))
    assert seen == [0, 0, 0]  # it asks
