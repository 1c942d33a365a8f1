"""The ways in which users prepare a 4-bit model for LoRA."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from transformers import BitsAndBytesConfig

from toys import devices
from toys.llama import peft_module_casting_to_bf16, qlora_script

from .architectures import Architecture
from .extras import Extra
from .families import LANGUAGE
from .sizes import EXCLUDED, UNQUANTIZED

HEADS = {"SEQ_CLS": ["classifier", "score"], "TOKEN_CLS": ["classifier", "score"], "QUESTION_ANS": ["qa_outputs"]}


def nf4(architecture: Architecture, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    # PEFT trains a classification head as it is, and finds it by these names.
    kept = architecture.kept + HEADS.get(architecture.task or "", [])
    if architecture.config.model_type in UNQUANTIZED:
        kept += ["lm_head", UNQUANTIZED[architecture.config.model_type]]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=kept or None,
    )


def save(architecture: Architecture, checkpoint: Path) -> None:
    """A toy with random weights, in bf16."""
    if isinstance(architecture, Extra):
        return  # it is built anew
    torch.manual_seed(0)
    architecture.model_class(architecture.config).to(torch.bfloat16).save_pretrained(checkpoint)


def prepared(architecture: Architecture, checkpoint: Path, recipe: str) -> Any:
    """The toy in 4 bits with LoRA on all linear layers, prepared by ``recipe`` (one of ``results.RECIPES``).

    ``eager`` is ``qlora`` with eager attention, whose products of activations are the model's own code. ``dropout`` is
    ``kbit`` with LoRA's dropout on. ``float32`` is what ``trl sft --load_in_4bit --use_peft --bf16`` makes by default:
    4-bit layers that compute in float32, adapters in bf16, dropout.
    """
    torch.manual_seed(0)
    model = loaded(architecture, checkpoint, recipe)
    for module in model.modules():
        # For CPUs with AVX512-bf16 bitsandbytes repacks a weight in evaluation; it can't where 32 does not divide its
        # rows, or 64 its columns.
        if isinstance(module, Linear4bit) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False
    if recipe in ("kbit", "qlora", "eager", "trl", "dropout", "float32"):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=architecture.checkpoints)
    lora = LoraConfig(
        r=4,
        lora_dropout=0.0,  # PEFT refuses any other where it wraps a Parameter (experts)
        target_modules=targeted(architecture, model),
        exclude_modules=EXCLUDED.get(architecture.config.model_type),
        task_type=None if architecture.task == "SPEECH" else architecture.task,
        init_lora_weights=False,  # a zero adapter would hide what its values do
        modules_to_save=head_and_embedding(model) if recipe == "heads" else None,
    )
    model = get_peft_model(model, lora, autocast_adapter_dtype=recipe not in ("adapters16", "float32"))
    if recipe in ("dropout", "float32"):
        dropout_in_adapters(model)
    cast = {
        "qlora": qlora_script,
        "eager": qlora_script,
        "norms32": norms_in_fp32,
        "trl": peft_module_casting_to_bf16,
        "float32": peft_module_casting_to_bf16,
    }.get(recipe)
    if cast:
        cast(model)
    return model.to(devices.TYPE)


def loaded(architecture: Architecture, checkpoint: Path, recipe: str) -> Any:
    """The toy in 4 bits."""
    compute_dtype = torch.float32 if recipe == "float32" else torch.bfloat16
    if isinstance(architecture, Extra):
        return architecture.quantized(compute_dtype).to(devices.TYPE)
    return architecture.model_class.from_pretrained(
        checkpoint,
        quantization_config=nf4(architecture, compute_dtype),
        dtype=torch.bfloat16,
        device_map={"": devices.TYPE},
        attn_implementation="eager" if recipe == "eager" else None,
    )


def targeted(architecture: Architecture, model: Any) -> str:
    """PEFT's word for all linear layers, or a pattern of the names of all in 4 bits.

    The word is for models of transformers alone; and it would take a module whose name ends as a linear layer's does.
    """
    if architecture.family == LANGUAGE:
        return "all-linear"
    names = [re.escape(name) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    if not names:
        raise ValueError("it has no linear layer that takes 4 bits")
    return "|".join(names)


def dropout_in_adapters(model: torch.nn.Module) -> None:
    """LoRA's dropout, but where PEFT refuses it."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), Linear4bit):
            module.lora_dropout["default"] = torch.nn.Dropout(0.05)


def dequantized(model: Any) -> Any:
    """The model with the same weights in bf16 linear layers, where 4 bits stood."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            linear.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state).bfloat16())
            linear.bias = layer.bias
            model.set_submodule(name, linear)
    return model


def head_and_embedding(model: Any) -> list[str]:
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if any(module is one for one in wanted)]


def norms_in_fp32(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name.rpartition(".")[2]:
            module.to(torch.float32)
