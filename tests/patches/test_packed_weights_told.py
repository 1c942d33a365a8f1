"""What is said where a packed weight is taken for a matrix: in the status, in the log, and as strict mode's error."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.patches import boundary
from qlora_bf16_patch.watching.events import CastRefused
from toys.layers import linear4bit
from toys.models import Model, lora_model


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear4bit()


class Reads(Part):
    """T5's feed-forward."""

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype))


class Clamps(Part):
    """Not in place, and stored in a floating dtype, which torch takes for the matrix itself."""

    def __init__(self):
        super().__init__()
        self.layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4", quant_storage=torch.bfloat16).to("cpu")

    def forward(self, x):
        return x @ self.layer.weight.clamp(-0.01, 0.01)


class ClampsInPlace(Part):
    """Gemma3n's (transformers 5.23.0)."""

    def forward(self, x):
        self.layer.weight.data.clamp_(-0.01, 0.01)
        return self.layer(x)


SAID = {
    Reads: "reads a packed weight's dtype, and is told torch.float32 instead of its storage, torch.uint8",
    Clamps: "a packed weight is dequantized to torch.float32 before clamp",
    ClampsInPlace: "a frozen packed weight is not clamped in place",
}


@pytest.mark.parametrize(("kind", "said"), SAID.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_done_with_a_packed_weight_is_told_as_such(kind, said, caplog, monkeypatch):
    # The status shows the first eight, and other tests have made some.
    monkeypatch.setattr(boundary.watch_of(qlora_bf16_patch._registry.installation(boundary.NAME)).record, "casts", {})
    part = kind()
    model = lora_model(toy=Model(part))
    packed = part.layer.weight.data.view(torch.uint8).clone()
    with caplog.at_level("INFO", "qlora_bf16_patch"), torch.no_grad():
        model(torch.randn(2, 64))
    assert torch.equal(part.layer.weight.data.view(torch.uint8), packed)
    assert f"part: {said}" in caplog.text
    (row,) = (row for row in qlora_bf16_patch.status() if row.name == "peft.boundary")
    assert any(f"part: {said}" in note for note in row.notes)


@pytest.mark.parametrize(("kind", "said"), SAID.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_strict_mode_refuses_it_with_the_patchs_name(kind, said, strict):
    model = lora_model(toy=Model(kind()))
    with pytest.raises(CastRefused) as refused, torch.no_grad():
        model(torch.randn(2, 64))
    assert f"{said} by peft.boundary" in str(refused.value)
