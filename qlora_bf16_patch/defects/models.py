"""``peft.boundary`` and ``transformers.generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .promise import Promise
from .toys import SIZE, device, hidden_states, lora, quantized


def boundary() -> tuple[Promise, ...]:
    return (
        Promise("gives a bfloat16 head the hidden states of a float32 norm", _head),
        Promise("multiplies activations of two dtypes in a model's own code", _own_product),
        Promise("takes a head that was put in later", _late_head),
    )


def generate() -> tuple[Promise, ...]:
    return (Promise("generates under autocast", _generates_under_autocast),)


def tiny_llama() -> Any:
    """A Llama of two layers in 4 bits with LoRA, as the QLoRA script leaves it: norms in float32, the rest bfloat16."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=SIZE,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, quantized(child, 4))
    model = model.to(device())
    model.is_loaded_in_4bit = True
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.to(torch.bfloat16)
    return model.eval()


def generated(model: Any) -> list[int]:
    """Four tokens after six, chosen greedily outside of autocast."""
    ids = torch.arange(3, 9, device=device())[None]
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    return found[0, 6:].tolist()  # type: ignore[no-any-return]


class _Scores(nn.Module):
    """Products of its own, as a model's attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.ones(SIZE, 2, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.queries


def _head() -> bool:
    norm, head = nn.LayerNorm(SIZE), nn.Linear(SIZE, 8, bias=False, dtype=torch.bfloat16)
    return _runs(lora(4, nn.Sequential(norm, head)))


def _own_product() -> bool:
    return _runs(lora(4, _Scores()))


def _late_head() -> bool:
    model = lora(4)
    model.base_model.model.behind = nn.Linear(SIZE, 8, bias=False, dtype=torch.bfloat16).to(device())
    return _runs(model)


def _runs(model: Any) -> bool:
    with torch.no_grad():
        return bool(model(hidden_states()).isfinite().all())


def _generates_under_autocast() -> bool:
    model, seen = tiny_llama(), []
    model.get_output_embeddings().float()  # so that it generates without any patch
    norm = next(module for name, module in model.named_modules() if name.endswith(".norm"))
    handle = norm.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled(device())))
    generated(model)
    handle.remove()
    return bool(seen) and all(seen)
