"""Small layers and models of bitsandbytes, PEFT and transformers, without a download or a file."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

SIZE = 64  # a width that bitsandbytes can repack for a CPU


def device() -> str:
    """Where 4-bit layers are tried."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def quantized(linear: nn.Linear, bits: int) -> nn.Module:
    """A 4- or 8-bit layer of the weights of ``linear``; one of 4 bits computes in bfloat16."""
    shape, weight = (linear.in_features, linear.out_features, linear.bias is not None), linear.weight.data
    layer: Any
    if bits == 4:
        layer = bnb.nn.Linear4bit(*shape, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    return layer.to(device())  # type: ignore[no-any-return]


def layer(bits: int) -> Any:
    """A quantized layer with a bias in float32, frozen as those of a base model are."""
    torch.manual_seed(0)
    return quantized(nn.Linear(SIZE, SIZE), bits).requires_grad_(False)


def hidden_states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Three tokens of two sequences."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, SIZE, generator=generator).to(device(), dtype)


class Part(nn.Module):
    """A quantized layer, and what stands behind it."""

    def __init__(self, bits: int, behind: nn.Module | None = None) -> None:
        super().__init__()
        setattr(self, f"is_loaded_in_{bits}bit", True)  # what makes PEFT choose its classes of so many bits
        self.proj = layer(bits)
        self.behind = behind or nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        return self.behind(self.proj(x))


def adapted(bits: int, config: Any, behind: nn.Module | None = None) -> Any:
    """A model in evaluation with an adapter on its quantized layer, that does something."""
    from peft import get_peft_model

    torch.manual_seed(2)
    model = get_peft_model(Part(bits, behind), config).to(device()).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "proj" in name and not parameter.any():
            parameter.data = torch.randn_like(parameter) / 8
    return model


def lora(bits: int, behind: nn.Module | None = None, **options: Any) -> Any:
    """:func:`adapted` by LoRA, its two matrices in float32."""
    from peft import LoraConfig

    return adapted(bits, LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False, **options), behind)
