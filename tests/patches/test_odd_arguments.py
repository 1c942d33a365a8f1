"""A first call that failed is run again only where all that it may have changed can be put back; else it says so."""

import copy
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from qlora_bf16_patch.watching import rewind
from qlora_bf16_patch.watching.kinds import kind_of
from toys.models import Toy, lora_model


class Changes(nn.Module):
    """It changes what it is given, and then computes a product that torch refuses for float32 hidden states."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.eye(64, dtype=torch.bfloat16))

    def forward(self, x, first, *rest):
        if isinstance(first, torch.Tensor):
            first.data.add_(1)
        else:
            first.append(len(first))
        return x @ self.gate


class Model(Toy):
    def __init__(self):
        super().__init__(bias=False, head=False)
        self.part = Changes()

    def forward(self, x, extra):
        return self.part(x, *extra)


@pytest.fixture
def call():
    """With gradients, as a training step: the first attempt is torch's own, whatever the call is given."""
    model = lora_model(toy=Model())
    return lambda *extra: model(torch.randn(1, 4, 64), extra=extra)


def test_what_is_given_twice_and_in_tuples_is_changed_once(call):
    shared, readonly = [], np.array([1, 2])
    readonly.flags.writeable = False
    for calls in (1, 2):
        assert call(shared, (shared, (readonly,)), call, len).dtype == torch.float32
        assert shared == list(range(calls))


def assert_told_once_and_mended_then(call, *extra):
    with pytest.raises(RuntimeError) as failure:
        call(*extra)
    (note,) = failure.value.__notes__
    assert "It was not run again under the patch, since it may have written to its arguments" in note
    assert call(*extra).dtype == torch.float32


def test_what_cannot_be_looked_into_is_not_put_back(call):
    given = deque()
    assert_told_once_and_mended_then(call, given)
    assert list(given) == [0, 1]


def test_a_view_whose_elements_share_their_memory_is_not_put_back(call):
    written = torch.zeros(4)
    assert_told_once_and_mended_then(call, written, [written[:1].expand(3)])
    assert written.tolist() == [2] * 4


def test_what_is_too_large_to_be_kept_is_not_put_back(call, monkeypatch):
    monkeypatch.setattr(rewind, "_LARGEST", 100)
    written = torch.zeros(4)
    assert_told_once_and_mended_then(call, written, [torch.zeros(10), torch.zeros(10), torch.zeros(10)])
    assert written.tolist() == [2] * 4


@pytest.mark.parametrize("flag", [True, None, [torch.ones(1)], (1, "two")], ids=["bool", "None", "list", "tuple"])
@pytest.mark.parametrize("by", ["position", "keyword"])
def test_a_flag_is_a_part_of_the_kind_of_call(flag, by):
    x = torch.ones(1, 2)

    def kind(value):
        return kind_of(nn.Identity(), *(((x, value), {}) if by == "position" else ((x,), {"flag": value})))

    assert kind(flag) == kind(copy.copy(flag))
    assert len({kind(value) for value in (flag, False, [torch.ones(1).bfloat16()], (1,))}) == 4
