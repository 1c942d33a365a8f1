"""What the backward runs again is mended as the forward was, wherever the checkpoint stands."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

import qlora_bf16_patch
from toys import devices
from toys.layers import linear4bit
from toys.models import Toy, called, lora_model

BF16 = torch.bfloat16


class Experts(nn.Module):
    """A product and a write that torch refuses for float32 hidden states."""

    def __init__(self):
        super().__init__()
        self.gate, self.checkpoint = nn.Parameter(torch.randn(1, 64, 64, dtype=BF16) / 8), called

    def multiplied(self, x):
        stream = x.new_zeros(x.shape, dtype=BF16)  # on a GPU in the backward's own thread, which has no default device
        stream[torch.tensor([0], device=x.device)] = torch.bmm(x, self.gate)
        return stream * x

    def forward(self, x):
        return self.multiplied(x)


class AroundAMethod(Experts):
    def forward(self, x):
        return x + self.checkpoint(self.multiplied, x)


class AroundAFunction(Experts):
    def forward(self, x):
        return x + self.checkpoint(lambda x: torch.bmm(x.relu(), self.gate), x)


class AroundAChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts, self.norm, self.checkpoint = Experts(), nn.LayerNorm(64, dtype=BF16), called

    @property
    def gate(self):
        return self.experts.gate

    def forward(self, x):
        return self.checkpoint(self.experts, self.checkpoint(self.norm, x))


class OneInAnother(AroundAChild):
    def forward(self, x):
        return self.checkpoint(lambda x: self.norm(self.checkpoint(self.experts, x)) + x @ self.gate[0], x)


class Reader(nn.Module):
    """T5's feed-forward casts to the dtype of its packed weight."""

    def __init__(self):
        super().__init__()
        self.layer = linear4bit(bias=False)

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype))


class AroundAReader(AroundAChild):
    def __init__(self):
        super().__init__()
        self.reader = Reader()

    def forward(self, x):
        return self.checkpoint(self.reader, super().forward(x))


class OfTransformers(GradientCheckpointingLayer):
    """transformers >= 5 checkpoints in the layer's call, outside of its forward."""

    forward = Experts.forward
    multiplied = Experts.multiplied

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(1, 64, 64, dtype=BF16) / 8)
        self.gradient_checkpointing = True

    @property
    def checkpoint(self):
        return self._gradient_checkpointing_func

    @checkpoint.setter
    def checkpoint(self, function):
        self._gradient_checkpointing_func = function


class Model(Toy):
    def __init__(self, part):
        super().__init__(bias=False, head=False)
        self.part, self.checkpoint = part, called

    def forward(self, x):
        return self.checkpoint(self.whole, x)

    def whole(self, x):
        return self.part(self.proj(x))


def step(kind, where, function, autocast):
    """Two training steps; loss and gradients of the last."""
    torch.manual_seed(0)
    toy = Model(kind())
    toy.part.checkpoint = called
    holder = {"inside": toy.part, "around": toy}[where]
    holder.checkpoint = function
    toy.part.gate.requires_grad_()
    model = lora_model(toy=toy).train()
    toy.part.gate.requires_grad_()
    for _ in range(2):
        model.zero_grad()
        x = torch.randn(1, 3, 64, generator=devices.generator(0)).requires_grad_()
        with torch.autocast(devices.TYPE, BF16, enabled=autocast):
            loss = model(x).float().square().sum()
        loss.backward()
    return loss, [x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


KINDS = [AroundAMethod, AroundAFunction, AroundAChild, OneInAnother, AroundAReader, OfTransformers]


@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("where", ["inside", "around"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_step_with_a_checkpoint_has_the_gradients_of_one_without(kind, where, reentrant, autocast):
    function = functools.partial(checkpoint, use_reentrant=reentrant)
    loss, gradients = step(kind, where, function, autocast)
    expected, plain = step(kind, where, called, autocast)
    assert torch.equal(loss, expected)
    assert len(gradients) == len(plain) > 3
    for gradient, other in zip(gradients, plain, strict=True):
        # Not to the bit: a reentrant checkpoint adds an input's gradients up in another order.
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_without_the_patch_torch_refuses_the_forward(kind):
    with qlora_bf16_patch.disabled("peft.boundary"), pytest.raises(RuntimeError, match="type"):
        step(kind, "inside", functools.partial(checkpoint, use_reentrant=False), autocast=False)
