"""Toys of real bitsandbytes and PEFT layers, and the dtypes that the contracts range over."""

import contextlib
import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import qlora_bf16_patch

from .. import devices

FLOATING = [torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
MODES = {"training": contextlib.nullcontext, "no grad": torch.no_grad, "inference": torch.inference_mode}


class Toy(nn.Module):
    is_loaded_in_4bit = True  # what makes PEFT choose its Linear4bit

    def __init__(self, bias=True, compute_dtype=torch.bfloat16, head=True):
        super().__init__()
        self.proj = linear4bit(compute_dtype, bias)
        self.head = nn.Linear(64, 8, bias=False, dtype=torch.bfloat16) if head else nn.Identity()

    def forward(self, x):
        return self.head(self.proj(x))


class Model(Toy):
    """A part of a k-bit model, behind the layer that is adapted."""

    def __init__(self, part):
        super().__init__(bias=False, head=False)
        self.part = part

    def forward(self, x, *args, **kwargs):
        return self.part(self.proj(x), *args, **kwargs)


def linear4bit(compute_dtype=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    with devices.on_cpu():
        layer = bnb.nn.Linear4bit(64, 64, bias=bool(bias), compute_dtype=compute_dtype, quant_type="nf4")
    layer = layer.to(devices.TYPE)
    if isinstance(bias, torch.dtype):
        layer.bias.data = layer.bias.data.to(bias)
    return layer


def lora_model(adapter_dtype=torch.float32, compute_dtype=torch.bfloat16, bias=True, toy=None, **options):
    """A toy with an adapter on ``proj`` that does something; its dtype is ``adapter_dtype``."""
    toy = toy or Toy(bias, compute_dtype)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False, **options)
    model = get_peft_model(toy, config, autocast_adapter_dtype=False).eval().to(devices.TYPE)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    return model


def lora_layer(*args, **options):
    return lora_model(*args, **options).base_model.model.proj


def flattened(module, name):
    """The module with a parameter as a plain attribute, as FSDP leaves its view into a flat parameter."""
    value = getattr(module, name).data
    del module._parameters[name]
    setattr(module, name, value)
    return module


def assert_takes_a_flattened_bias(layer, dtype):
    bias, before = flattened(layer, "bias").bias, layer.bias.clone()
    assert layer(torch.randn(2, 64).to(dtype)).dtype == dtype
    assert layer.bias is bias
    assert bias.dtype == before.dtype
    assert torch.equal(bias, before)


def autocast(dtype):
    """What a training step in ``dtype`` runs in; autocast knows half precisions alone."""
    return torch.autocast(devices.TYPE, dtype=dtype) if dtype in HALF else contextlib.nullcontext()


def assert_as_under_autocast(outside, inside, dtype):
    """What a layer gives back outside of autocast, held against what it does inside of it."""
    assert outside.dtype == dtype
    # Under CUDA's autocast PEFT casts nothing back: DoRA, or adapters in another half precision, leak another dtype
    # (unsloth#6526), and upstream's result stands.
    assert inside.dtype == dtype or devices.TYPE == "cuda"
    assert torch.equal(outside, inside.to(dtype))


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


@pytest.fixture
def strict():
    """As QLORA_BF16_PATCH_STRICT=1."""
    with qlora_bf16_patch.strict():
        yield
