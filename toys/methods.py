"""Models of k-bit layers with every PEFT method."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import devices  # isort: skip  # before torch

import torch
from peft import PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from .layers import BF16, F16, F32, kbit, short
from .models import Layers

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
_SHAPE, _INTEGER = "shapes cannot be multiplied|is invalid for input of size", "floating point|float32/float16/bfloat16"
# What can't run on a layer of so many bits with peft 0.21.2, with or without the shim, and what is raised.
OUT_OF_REACH: dict[tuple[str, int], str] = {
    ("ADAMSS", 4): "scikit-learn is required|Sizes of tensors must match",
    ("ADAMSS", 8): f"scikit-learn is required|{_INTEGER}",
    ("C3A", 8): "view was created in no_grad mode",  # in training, as GRALORA
    ("DEFT", 4): _SHAPE,
    ("DELORA", 4): _INTEGER,
    ("DELORA", 8): _INTEGER,
    ("FROD", 4): f"{_INTEGER}|same device",
    ("FROD", 8): f"{_INTEGER}|same device",
    ("GLORA", 4): "not a plain torch.nn.Linear",
    ("GLORA", 8): "not a plain torch.nn.Linear",
    ("GRALORA", 8): "view was created in no_grad mode",
    ("HRA", 4): _SHAPE,
    ("LN_TUNING", 4): _INTEGER,
    ("LN_TUNING", 8): _INTEGER,
    ("LOHA", 4): _SHAPE,
    ("LOKR", 4): _SHAPE,
    ("OSF", 4): "effective_rank",
    ("OSF", 8): _INTEGER,
    ("PEANUT", 4): _SHAPE,
    ("POLY", 4): "task_ids",  # an argument that only PEFT's own model passes
    ("POLY", 8): "task_ids",
    ("PSOFT", 4): _INTEGER,
    ("PSOFT", 8): _INTEGER,
    ("SHADOW", 4): "locate the transformer backbone",
    ("SHADOW", 8): "locate the transformer backbone",
    ("SUPERTUNING", 4): "Byte",  # multiplies with the packed weight
    ("SUPERTUNING", 8): "Char",
    ("TINYLORA", 4): _INTEGER,
    ("TINYLORA", 8): _INTEGER,
    ("TRAINABLE_TOKENS", 4): _INTEGER,  # is for embeddings
    ("TRAINABLE_TOKENS", 8): _INTEGER,
}


def every_method() -> list[tuple[str, int]]:
    """PEFT's methods for linear layers by name, on so many bits; a new one of PEFT's is among them."""
    return [
        (method.value, bits)
        for method in sorted(PEFT_TYPE_TO_TUNER_MAPPING)
        for bits in (4, 8)
        if "target_modules" in PEFT_TYPE_TO_CONFIG_MAPPING[method].__dataclass_fields__
        and method != PeftType.ADAPTION_PROMPT  # on attention modules
    ]


def methods() -> list[tuple[str, int]]:
    """Those that run."""
    return [case for case in every_method() if case not in OUT_OF_REACH]


def config_of(method: str, **options: Any) -> PeftConfig:
    """A configuration of the method on a toy's ``proj``."""
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)]
    return kind(**{"target_modules": ["proj"], **OPTIONS.get(method, {}), **options})


def with_adapters(toy: nn.Module, config: PeftConfig, adapter_dtype: torch.dtype) -> Any:
    """The toy with adapters of which every parameter does something."""
    own = set(toy.parameters())
    with devices.on_cpu():  # PEFT draws some weights by a generator of the CPU's
        model = get_peft_model(toy, config, autocast_adapter_dtype=False)
    model = model.to(devices.TYPE)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter not in own:
            data = parameter.data if parameter.any() else 0.1 * torch.randn(parameter.shape)
            parameter.data = data.to(adapter_dtype)
    return model


class Proj(nn.Module):
    """The layer that is adapted, alone."""

    def __init__(self, bits: int, compute_dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        setattr(self, f"is_loaded_in_{bits}bit", True)
        self.proj = kbit(bits, compute_dtype, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def adapted(
    method: str, bits: int, adapter_dtype: torch.dtype = F32, compute_dtype: torch.dtype = BF16, bias: bool = True
) -> Any:
    """A layer with a method's adapter, in evaluation."""
    toy = Proj(bits, compute_dtype, bias)
    torch.manual_seed(1)
    return with_adapters(toy, config_of(method), adapter_dtype).eval()


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
        """The model in training."""
        config = self.config()
        toy = Layers(self.bits, self.compute_dtype, self.head)
        torch.manual_seed(1)
        model = with_adapters(toy, config, self.adapter_dtype)
        if self.variant == "two adapters":  # the second one in the other dtype
            with devices.on_cpu():
                model.add_adapter("other", config, autocast_adapter_dtype=False)
            model.base_model.set_adapter(["default", "other"])
            other = BF16 if self.adapter_dtype == F32 else F32
            for name, parameter in model.named_parameters():
                if ".other." in name:
                    parameter.data = parameter.data.to(other)
        return model.to(devices.TYPE)

    def config(self) -> PeftConfig:
        variant = LORA_VARIANTS[self.variant] if self.method == PeftType.LORA else {}
        return config_of(self.method, **variant, **{name: self.dropout for name in self.dropouts() if self.dropout})

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
