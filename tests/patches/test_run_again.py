"""A call that failed is run again as if it had not been, whatever it was given; what works is not touched by it."""

import numpy as np
import pytest
import torch
from torch import nn

from qlora_bf16_patch.watching.rewind import Snapshot
from toys.models import Alone, lora_model

BF16 = torch.bfloat16


class Gate(nn.Module):
    """A product that torch refuses for float32 hidden states, behind what :meth:`before` does to the arguments."""

    def __init__(self, dtype=BF16):
        super().__init__()
        self.gate = nn.Parameter(torch.eye(64, dtype=dtype))
        self.position = nn.Parameter(torch.ones(64))

    def before(self, x, extra):
        return x

    def forward(self, x, extra=None):
        return self.before(x, extra) @ self.gate


class AddsWhatIsTrained(Gate):
    def before(self, x, extra):
        x += self.position
        return x


class WritesThroughData(Gate):
    def before(self, x, extra):
        extra["state"].data.add_(1)
        return x + extra["state"]


class Draws(Gate):
    """It changes arguments of Python's own and numpy's classes."""

    def before(self, x, extra):
        for value in extra:
            if isinstance(value, set):
                value.add(len(value))
            elif isinstance(value, (bytearray, np.ndarray)):
                value[0] += 1
        return x


def model_of(part):
    return lora_model(toy=Alone(part)).eval()


def test_the_first_steps_gradients_are_those_of_the_second():
    for dtype in (torch.float32, BF16):
        model = model_of(AddsWhatIsTrained(dtype))
        position = model.base_model.model.part.position.requires_grad_()
        for _ in range(2):
            position.grad = None
            model(torch.zeros(1, 4, 64)).sum().backward()
            assert torch.equal(position.grad, torch.full((64,), 4.0))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_was_written_through_data_is_written_once(context):
    model = model_of(WritesThroughData())
    with context():
        for calls in (1, 2):
            state = {"state": torch.zeros(64)}
            result = model(torch.zeros(1, 1, 64), extra=state)
            assert state["state"].eq(1).all()
            assert result.eq(1).all(), calls


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_arguments_whose_elements_share_their_memory_are_left_alone(context):
    model = model_of(Gate())
    with context():
        ids = torch.arange(4).unsqueeze(0).expand(2, -1)
        for _ in range(2):
            assert model(torch.randn(2, 4, 64), extra=ids).shape == (2, 4, 64)


@pytest.mark.parametrize("gradients", [False, True])
def test_arguments_without_a_dict_are_no_reason_to_fail(gradients):
    model = model_of(Draws())
    with torch.set_grad_enabled(gradients):
        extra = [{0}, np.array([1, 2]), bytearray(b"ab"), np.int64(3), range(3), slice(2), frozenset([4])]
        extra.append(torch.Generator())
        model(torch.randn(1, 4, 64), extra=extra)
        assert (extra[0], extra[1].tolist(), extra[2]) == ({0, 1}, [2, 2], bytearray(b"bb"))


class Uncopied(torch.Tensor):
    def clone(self, *args, **kwargs):
        raise NotImplementedError("no clone")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.randn(2, 64), torch.randn(3, 64)], layout=torch.strided),
        lambda: torch.randn(1, 4, 64).as_subclass(Uncopied),
        lambda: torch.eye(64).to_sparse(),
    ],
    ids=["nested", "not to be copied", "sparse"],
)
def test_a_call_that_works_works_with_tensors_that_cannot_be_looked_at(make):
    model = model_of(nn.Identity())
    value = make()
    assert model(value) is value


def test_large_arguments_are_not_looked_into():
    small, large = Snapshot([[1, 2]]), Snapshot([list(range(10**5))])
    assert small.restore()
    assert large.holds_something
    assert not large.restore()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_a_model_is_traced_by_torch_jit():
    model, x = model_of(Gate()), torch.randn(1, 4, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), model(x))
