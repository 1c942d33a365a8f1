"""Contract G without a clock: dispatched operations and bytes, which do not depend on the machine."""

import functools

import pytest
import torch

from toys.conditions import CONDITIONS, Counter, counted
from toys.layers import kbit, linear4bit
from toys.methods import adapted, methods
from toys.models import lora_layer, lora_model


def operations(run, condition):
    return counted(run, condition).operations


def without_gradients(layer, dtype):
    return torch.no_grad()(functools.partial(layer, torch.randn(1, 1, 64).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_takes_fewer_operations_than_unpatched_and_than_autocast(dtype):
    run = without_gradients(lora_layer(bias=False), dtype)
    shim = operations(run, "shim")
    assert shim < operations(run, "unpatched")
    assert shim < operations(run, "autocast")
    assert operations(run, "off") == operations(run, "unpatched")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        linear4bit(bias=False),
        linear4bit(bias=torch.bfloat16),
        kbit(8, bias=False),
        torch.nn.Linear(64, 64, dtype=torch.bfloat16),
    ],
    ids=["4 bits", "4 bits with a bias", "8 bits", "unmarked"],
)
def test_a_layer_without_an_adapter_takes_the_unpatched_operations(layer, dtype):
    if type(layer) is torch.nn.Linear:
        dtype = torch.bfloat16  # unpatched it takes no other
    run = without_gradients(layer, dtype)
    assert operations(run, "shim") == operations(run, "unpatched")


def test_a_head_takes_the_unpatched_operations_where_dtypes_agree():
    run = without_gradients(lora_model().base_model.model.head, torch.bfloat16)
    assert operations(run, "shim") == operations(run, "unpatched")


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("method", "bits"), methods())
def test_another_method_takes_autocasts_operations_and_a_cast_where_autocast_leaks_a_dtype(method, bits, dtype):
    run = without_gradients(adapted(method, bits, bias=False).base_model.model.proj, dtype)
    with CONDITIONS["autocast"]():
        leaks = run().dtype != dtype
    assert operations(run, "shim") <= operations(run, "autocast") + leaks


def test_a_lora_layer_needs_no_more_bytes_than_unpatched():
    layer, peaks = lora_layer(bias=False), {}
    for name in ("unpatched", "shim"):
        with CONDITIONS[name](), torch.no_grad(), Counter() as counter:
            layer(torch.randn(1, 512, 64).bfloat16())
        peaks[name] = counter.peak
    assert peaks["shim"] <= peaks["unpatched"]
