"""Llamas with random weights, quantized, with LoRA on every linear layer, prepared as users prepare them."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from typing import Any

from . import devices  # isort: skip  # before torch

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int


TOY = Shape(1, 64, 128, 4, 2, 320)
DEEP = Shape(32, 64, 128, 4, 2, 320)  # all overhead: what each module costs shows here
SMALL = Shape(8, 512, 1024, 8, 8, 1024)
LLAMA_3_8B = Shape(32, 4096, 14336, 32, 8, 128256)


@functools.cache
def checkpoint(shape: Shape = TOY) -> tempfile.TemporaryDirectory[str]:
    """A Llama's, in bfloat16; its folder lives as long as the process."""
    folder = tempfile.TemporaryDirectory()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        dtype=torch.bfloat16,
    )
    with torch.random.fork_rng(), torch.device(devices.TYPE):  # what is drawn next is the same at the first call
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder.name)
    return folder


def quantized(
    shape: Shape = TOY, bits: int = 4, dtype: torch.dtype = torch.bfloat16, **quantization: Any
) -> LlamaForCausalLM:
    """A Llama of ``shape`` in so many bits, by default NF4 that computes in ``dtype``, as its other weights are.

    Args:
        shape: sizes.
        bits: 4 or 8.
        dtype: of what is not quantized.
        quantization: more of, or other arguments than these, for transformers' ``BitsAndBytesConfig``.
    """
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if bits == 4 else {}
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, **(nf4 | quantization))
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint(shape).name, quantization_config=config, dtype=dtype, device_map={"": devices.TYPE}
    )
    for module in model.modules():
        # bitsandbytes repacks weights for CPUs with AVX512-bf16, and computes with a kernel of its own then. The patch
        # never lets it: repacking rounds for good (0.49 and later, _convert_weight_packed_for_cpu).
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def llama(shape: Shape, recipe: str) -> Any:
    """A model of ``shape`` with adapters, in 4 bits that are quantized twice.

    Args:
        shape: sizes.
        recipe: ``plain`` (norms in bf16, adapters in fp32), ``kbit`` (PEFT's preparation), ``qlora`` (that, and the
            QLoRA script's cast loop), ``agreeing`` (everything in bf16: the floor).
    """
    model: Any = quantized(shape, bnb_4bit_use_double_quant=True)
    torch.manual_seed(1)  # of the adapters
    if recipe in ("kbit", "qlora"):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model, config, autocast_adapter_dtype=recipe != "agreeing")
    if recipe == "agreeing":
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    if recipe == "qlora":
        qlora_script(model)
    return model


def qlora_script(model: torch.nn.Module) -> None:
    """The cast loop of artidoro/qlora's ``qlora.py``, with ``--bf16``."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            module.to(torch.bfloat16)
        if "norm" in name:
            module.to(torch.float32)
        if ("lm_head" in name or "embed_tokens" in name) and hasattr(module, "weight"):
            if module.weight.dtype == torch.float32:
                module.to(torch.bfloat16)


def peft_module_casting_to_bf16(model: torch.nn.Module) -> None:
    """TRL's function of that name (``trl/experimental/utils.py``), which its trainers call after PEFT's preparation."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(part in name for part in ("lm_head", "embed_tokens", "wte", "wpe")) and hasattr(module, "weight"):
            if module.weight.dtype == torch.float32:
                module.to(torch.bfloat16)


def generate(model: Any, ids: torch.Tensor, tokens: int) -> Any:
    """So many tokens, and no fewer: a head with random weights may choose the end of the text."""
    return model.generate(input_ids=ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0)


def step(model: Any, ids: torch.Tensor) -> None:
    """A training step in bfloat16 autocast, as Trainer makes it."""
    with torch.autocast(devices.TYPE, torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad()
