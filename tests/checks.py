"""What tests of several files hold a module to."""

import contextlib
import copy

import torch

from toys import devices
from toys.layers import flattened

MODES = {"training": contextlib.nullcontext, "no grad": torch.no_grad, "inference": torch.inference_mode}


def state(module):
    """Every entry of the state dict, byte for byte."""
    return {
        name: (value.dtype, value.shape, value.contiguous().view(torch.uint8).clone() if value.dim() else value.clone())
        for name, value in copy.copy(module.state_dict()).items()
    }


def assert_unchanged(module, before):
    after = state(module)
    assert before.keys() == after.keys()
    for name, (dtype, shape, data) in before.items():
        assert (dtype, shape) == after[name][:2], name
        assert torch.equal(data, after[name][2]), name


def assert_takes_a_flattened_bias(layer, dtype):
    bias, before = flattened(layer, "bias").bias, layer.bias.clone()
    assert layer(torch.randn(2, 64).to(dtype)).dtype == dtype
    assert layer.bias is bias
    assert bias.dtype == before.dtype
    assert torch.equal(bias, before)


def assert_as_under_autocast(outside, inside, dtype):
    """What a layer gives back outside of autocast, held against what it does inside of it."""
    assert outside.dtype == dtype
    # Under CUDA's autocast PEFT casts nothing back: DoRA, or adapters in another half precision, leak another dtype
    # (unsloth#6526), and upstream's result stands.
    assert inside.dtype == dtype or devices.TYPE == "cuda"
    assert torch.equal(outside, inside.to(dtype))


def hooked(model):
    """The modules with a hook on their forward."""
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
