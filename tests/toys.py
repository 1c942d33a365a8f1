"""Toys of k-bit layers with every PEFT method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import devices  # isort: skip  # before torch

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from . import cpu  # noqa: F401

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SIZE = 64

# What torch says when dtypes do not fit.
MISMATCH = re.compile(
    r"same dtype|should be the same|scalar type|mixed dtype|dtypes? (to )?match|to match query dtype|dtype mismatch"
    r"|dtypes? to be equal|different dtypes?|but got:? \S*(float|bfloat16|half)|ScalarType",
    re.IGNORECASE,
)

# What a method's configuration needs beside target modules, on a layer of SIZE by SIZE.
OPTIONS: dict[str, dict[str, Any]] = {
    PeftType.ADALORA: {"total_step": 10},
    PeftType.C3A: {"block_size": 32},
    PeftType.IA3: {"feedforward_modules": []},
    PeftType.LORA: {"r": 4, "lora_alpha": 6, "init_lora_weights": False},  # a scaling that is no power of two
    PeftType.OFT: {"oft_block_size": 8},
    PeftType.VBLORA: {"vector_length": 32, "num_vectors": 8},
}
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "two adapters": {},
}
# Methods that can't train a layer of 4, of 8 or of both bits with peft 0.21.2, for other reasons than dtypes.
_NOT_ON_4 = {"DEFT", "HRA", "LOHA", "LOKR", "PEANUT"}
_NOT_ON_8 = {"C3A", "GRALORA"}
_NOT_ON_EITHER = {"ADAMSS", "ADAPTION_PROMPT", "DELORA", "FROD", "GLORA", "LN_TUNING", "OSF", "POLY", "PSOFT"}
_NOT_ON_EITHER |= {"SHADOW", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS"}
UNREACHED = {4: _NOT_ON_4 | _NOT_ON_EITHER, 8: _NOT_ON_8 | _NOT_ON_EITHER}


def methods() -> list[tuple[str, int]]:
    """PEFT's methods by name that reach a linear layer of so many bits; a new one of PEFT's is among them."""
    return [
        (method.value, bits)
        for method in sorted(PEFT_TYPE_TO_TUNER_MAPPING)
        for bits in (4, 8)
        if "target_modules" in PEFT_TYPE_TO_CONFIG_MAPPING[method].__dataclass_fields__
        and method.value not in UNREACHED[bits]
    ]


def kbit(bits: int, compute_dtype: torch.dtype = BF16, bias: torch.dtype = F32, **options: Any) -> nn.Module:
    """A quantized linear layer, SIZE by SIZE, with a bias."""
    with devices.on_cpu():
        if bits == 4:
            layer = bnb.nn.Linear4bit(SIZE, SIZE, compute_dtype=compute_dtype, quant_type="nf4", **options)
        else:
            layer = bnb.nn.Linear8bitLt(SIZE, SIZE, has_fp16_weights=False)
    layer = layer.to(devices.TYPE)
    if bits == 4:
        # bitsandbytes repacks a weight in evaluation where the CPU has AVX512-bf16, and rounds it: another kernel than
        # training's, and another result from CPU to CPU (bitsandbytes 0.49 and later, _convert_weight_packed_for_cpu).
        layer.support_avx512bf16_for_cpu = False
    layer.bias.data = layer.bias.data.to(bias)
    return layer


class Toy(nn.Module):
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
    return function(*args)


@dataclass(frozen=True)
class Recipe:
    """How a model is built."""

    method: str = "LORA"
    bits: int = 4
    compute_dtype: torch.dtype = BF16
    adapter_dtype: torch.dtype = F32
    variant: str = "plain"
    dropout: float = 0.0
    head: torch.dtype | None = None

    def build(self) -> nn.Module:
        """The toy with adapters of which every parameter does something."""
        config = self.config()
        torch.manual_seed(1)
        toy = Toy(self.bits, self.compute_dtype, self.head)
        with devices.on_cpu():  # PEFT draws some weights by a generator of the CPU's
            model = get_peft_model(toy, config, autocast_adapter_dtype=False)
        model = model.to(devices.TYPE)
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and "proj" in name and "base_layer" not in name:
                data = parameter.data if parameter.any() else 0.1 * torch.randn(parameter.shape)
                parameter.data = data.to(self.adapter_dtype)
        if self.variant == "two adapters":  # the second one in the other dtype
            with devices.on_cpu():
                model.add_adapter("other", config, autocast_adapter_dtype=False)
            model.base_model.set_adapter(["default", "other"])
            other = BF16 if self.adapter_dtype == F32 else F32
            for name, parameter in model.named_parameters():
                if ".other." in name:
                    parameter.data = parameter.data.to(other)
        return model.to(devices.TYPE)

    def config(self) -> Any:
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.method)]
        options = {"target_modules": ["proj"], **OPTIONS.get(self.method, {})}
        if kind is LoraConfig:
            options |= LORA_VARIANTS[self.variant]
        return kind(**options, **{name: self.dropout for name in self.dropouts() if self.dropout})

    def dropouts(self) -> list[str]:
        """The method's options that are probabilities of a dropout."""
        fields = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.method)].__dataclass_fields__
        return [name for name in fields if name.endswith("dropout")]

    def __str__(self) -> str:
        kind = self.method if self.variant == "plain" else self.variant
        computes = f", computes in {short(self.compute_dtype)}" if self.bits == 4 else ""
        head = f", {short(self.head)} head" if self.head else ""
        return (
            f"{kind} on {self.bits} bits{computes}, {short(self.adapter_dtype)} adapters, dropout {self.dropout}{head}"
        )


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hidden_states(dtype: torch.dtype = F32) -> torch.Tensor:
    """Three tokens of two sequences, the same at each call."""
    with devices.on_cpu():
        x = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
    return x.to(devices.TYPE)


def recipes(method: str, bits: int, calls: int = 1, **fixed: Any) -> Iterator[Recipe]:
    """Every way to build a model of a method, but with ``fixed``; it must bear so many calls."""
    simple = Recipe(method, bits)
    ranges = {
        "compute_dtype": (BF16, F16, F32) if bits == 4 else (BF16,),  # 8-bit layers have none to configure
        "adapter_dtype": (F32, BF16),
        "variant": tuple(LORA_VARIANTS) if method == "LORA" else ("plain",),
        "dropout": (0.0, 0.05) if simple.dropouts() else (0.0,),
    } | {name: (value,) for name, value in fixed.items()}
    for values in itertools.product(*ranges.values()):
        recipe = replace(simple, **dict(zip(ranges, values, strict=True)))
        # On a CPU DoRA quantizes an 8-bit weight anew at its first call, and the second finds no scales (peft 0.21.2,
        # peft/utils/integrations.py, dequantize_module_weight).
        if calls == 1 or (recipe.variant, bits) != ("DoRA", 8) or devices.TYPE != "cpu":
            yield recipe
