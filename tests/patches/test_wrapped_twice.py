"""Another library's wrapper that does not say what it wraps is between two of ours after enable()."""

import bitsandbytes as bnb
import pytest
import torch
from peft.tuners.lora import bnb as lora

import qlora_bf16_patch
from toys.layers import BF16, F16, F32, autocast, kbit
from toys.models import lora_layer

LAYERS = {
    "4 bits": (bnb.nn.Linear4bit, lambda: kbit(4, bias=F16)),
    "8 bits": (bnb.nn.Linear8bitLt, lambda: kbit(8, bias=F16).eval()),
    "LoRA": (lora.Linear4bit, lora_layer),
    "LoRA, bf16": (lora.Linear4bit, lambda: lora_layer(BF16)),
    "DoRA": (lora.Linear4bit, lambda: lora_layer(use_dora=True)),
}


def results(layer, dtype):
    """Outputs in and outside of autocast, with and without gradients, and the input's gradient."""
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    outputs = []
    for gradients in (True, False):
        for inside in (None, BF16):
            with torch.set_grad_enabled(gradients), autocast(inside):
                outputs.append(layer(x))
    outputs[0].float().sum().backward()
    return [*outputs, x.grad]


@pytest.fixture
def wrapped(monkeypatch):
    """Wraps a class' forward, and returns the list of calls."""

    def wrap(cls):
        below, calls = cls.forward, []

        def forward(self, *args, **kwargs):
            calls.append(1)
            return below(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", forward)
        return calls

    yield wrap
    monkeypatch.undo()
    qlora_bf16_patch.uninstall()
    qlora_bf16_patch.reset()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_call_through_two_of_our_wrappers_has_the_same_bits_and_calls_theirs_once(kind, dtype, wrapped):
    cls, build = LAYERS[kind]
    layer = build()
    expected = results(layer, dtype)
    ours = cls.forward
    calls = wrapped(cls)
    assert all(map(torch.equal, results(layer, dtype), expected))
    assert len(calls) == 4
    qlora_bf16_patch.enable()
    assert cls.forward is not ours
    found = results(layer, dtype)
    assert len(calls) == 8
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)
