"""Models of a k-bit layer, a part behind it, and LoRA on the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import devices  # isort: skip  # before torch

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from .layers import BF16, F32, SIZE, kbit, linear4bit


class Toy(nn.Module):
    """The layer that is adapted, and a head in bfloat16."""

    is_loaded_in_4bit = True  # what makes PEFT choose its Linear4bit

    def __init__(self, bias: bool | torch.dtype = True, compute_dtype: torch.dtype = BF16, head: bool = True) -> None:
        super().__init__()
        self.proj = linear4bit(compute_dtype, bias)
        self.head = nn.Linear(SIZE, 8, bias=False, dtype=BF16) if head else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.proj(x))


class Model(Toy):
    """A part of a k-bit model, behind the layer that is adapted."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(bias=False, head=False)
        self.part = part

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.part(self.proj(x), *args, **kwargs)


class Alone(Model):
    """A part of a k-bit model that is given what the model is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs)


class Generates(Toy):
    """``generate`` goes past the outer model's forward, as transformers' does."""

    def generate(self, x: torch.Tensor) -> torch.Tensor:
        return self.eval()(x)


class Layers(nn.Module):
    """A layer that is adapted, one that stays bare, and if wanted a norm in float32 and a head in another dtype."""

    def __init__(self, bits: int, compute_dtype: torch.dtype = BF16, head: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        setattr(self, f"is_loaded_in_{bits}bit", True)  # what makes PEFT choose its classes of so many bits
        # A bias in bfloat16, as checkpoints have it: BOFT and DEFT read it after bitsandbytes has written the input's
        # dtype to it, which the shim never does.
        self.proj, self.bare = kbit(bits, compute_dtype, BF16), kbit(bits, compute_dtype)
        self.norm, self.head = nn.Identity(), nn.Identity()
        if head is not None:
            self.norm, self.head = nn.LayerNorm(SIZE), nn.Linear(SIZE, 8, bias=False, dtype=head)
        self.checkpoint: Callable[..., Any] = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.checkpoint(self.layers, x)))

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        return self.bare(nn.functional.silu(self.proj(x)))


def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In the place of ``torch.utils.checkpoint.checkpoint``."""
    return function(*args)


def lora_model(
    adapter_dtype: torch.dtype = F32,
    compute_dtype: torch.dtype = BF16,
    bias: bool | torch.dtype = True,
    toy: nn.Module | None = None,
    **options: Any,
) -> Any:
    """A toy with an adapter on ``proj`` that does something; its dtype is ``adapter_dtype``."""
    toy = toy or Toy(bias, compute_dtype)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False, **options)
    model = get_peft_model(toy, config, autocast_adapter_dtype=False).eval().to(devices.TYPE)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    return model


def lora_layer(*args: Any, **options: Any) -> Any:
    """The adapted layer of such a model."""
    return lora_model(*args, **options).base_model.model.proj


def two_adapters(first: torch.dtype, second: torch.dtype, compute_dtype: torch.dtype) -> Any:
    """An adapted layer with two active adapters, in a dtype each."""
    model = lora_model(F32, compute_dtype)
    model.add_adapter("other", model.peft_config["default"])
    layer = model.base_model.model.proj
    for name, dtype in (("default", first), ("other", second)):
        layer.lora_A[name].to(dtype)
        layer.lora_B[name].to(dtype)
    layer.set_adapter(["default", "other"])
    return layer
