"""Finds the architectures of the installed transformers and builds a toy of each from its own configuration class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

VOCABULARY = 320

# Sizes by attribute name, first match wins; a size is only ever made smaller.
SIZES: list[tuple[str, int]] = [
    (r".*vocab.*", VOCABULARY),
    (r".*(layers|layer|depth|blocks|layers_per_stack)", 2),
    (r".*(key_value|kv|query)_(heads|groups)|n_head_kv|kv_n_heads|.*n_?groups?|num_expert_group|topk_group", 2),
    (r".*(num_mamba_heads|mamba_n_heads|mamba_num_heads)", 4),
    (r".*heads?|.*n_heads", 4),
    (r"qk_head_dim", 32),
    (r".*head_?dim|dim_head|d_kv|d_head|.*head_size|kv_channels|.*rank|rotary_dim", 16),
    (r".*(per_tok|per_token|top_?k|moe_k|cross_attn_k)", 2),
    (r".*(experts?|expert_num)", 4),
    (r".*(intermediate.*size.*|ffn_dim|d_ff|dff|dim_ff|d_inner|ffn_hidden_size|feed_forward_size|mlp_dim|n_inner)", 128),
    (r".*(hidden_size|d_model|n_embd|_dim|_width|embedding_size|embed_size|hidden_dim|embedding_dim|size_global)", 64),
    (r".*(position.*|n_positions|n_ctx|seq_len|context_length|source_positions|max_pos_emb|model_max_length)", 256),
    (r".*(window.*|chunk_size|block_size)", 8),
    (r".*period", 2),
    (r".*(layer_offset|step|interval|replace|every_n_layers)", 1),
    (r".*state(_size)?|d_state", 16),
]


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers with the task that PEFT is told."""

    name: str
    task: str

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.name)

    @cached_property
    def config(self) -> Any:
        """A toy's configuration; a left out start token of an encoder-decoder is 0."""
        wanted = {"is_decoder": True} if self.task == "CAUSAL_LM" else {}
        config = shrunk(self.model_class.config_class, wanted, {})
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = 0
        return config

    def inputs(self) -> dict[str, torch.Tensor]:
        """Two sequences of 12 tokens, the second padded on the left; ids are int64."""
        ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
        if self.task == "SEQ_CLS":  # the head of BART and T5 reads the end's hidden state
            ids[:, -1] = getattr(self.config, "eos_token_id", None) or 1
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        return {"input_ids": ids, "attention_mask": mask}

    def decoder_inputs(self) -> dict[str, torch.Tensor]:
        """What an encoder-decoder's forward needs beside `inputs`."""
        return {"decoder_input_ids": self.inputs()["input_ids"]} if self.task == "SEQ_2_SEQ_LM" else {}

    def targets(self) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([0, 1]) if self.task == "SEQ_CLS" else self.inputs()["input_ids"]}


def shrunk(config_class: Any, wanted: dict[str, Any], options: dict[str, Any]) -> Any:
    """A small instance of ``config_class``: sizes by `SIZES`, then ``wanted`` where it has the attribute, then ``options``."""
    options = OPTIONS.get(config_class.__name__, {}) | options
    default = config_class()
    nested = {name: type(getattr(default, name)) for name in default.sub_configs if getattr(default, name, None) is not None}
    small: dict[str, Any] = {name: shrunk(kind, {}, options.get(name, {})) for name, kind in nested.items()}
    layers, heads = (getattr(default, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    for name, value in default.to_dict().items():
        if name in nested:
            continue
        if isinstance(value, list) and value and len(value) == layers:
            small[name] = (list(dict.fromkeys(value)) * 2)[:2]
        elif isinstance(value, int) and not isinstance(value, bool):
            grouped = name != "num_key_value_heads" or value != heads
            smaller = _smaller(name if grouped else "num_attention_heads", value)
            if smaller != value:
                small[name] = smaller
        elif name in wanted or (value is None and name in NEEDED):
            small[name] = wanted[name] if name in wanted else NEEDED[name]
    return config_class(**{**small, **{k: v for k, v in options.items() if k not in nested}})


def _smaller(name: str, value: int) -> int:
    if re.fullmatch(r".*token_(id|index)", name):
        return value if value < VOCABULARY else 200 + value % 100
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


# Sizes that a configuration leaves out by default, but the model needs, where the configuration has the attribute.
NEEDED = {
    "head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 2,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "pad_token_id": 0,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
# By configuration class, what generic shrinking gets wrong.
OPTIONS: dict[str, dict[str, Any]] = {
    "BambaConfig": {**MAMBA, "attn_layer_indices": [1]},
    "CanineConfig": {"num_hash_buckets": 64},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "DistilBertConfig": {"dim": 64, "hidden_dim": 128},
    "EsmConfig": {"vocab_size": VOCABULARY},
    "FalconH1Config": {**MAMBA, "mamba_d_ssm": 128},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "intermediate_size": 128, "activation_sparsity_pattern": [0.95, 0.0]},
    "Gemma4UnifiedAssistantConfig": {"text_config": {"num_kv_shared_layers": 0}},
    "GraniteMoeHybridConfig": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "Mamba2Config": {"num_heads": 4, "head_dim": 32},
    "PerceiverConfig": {"d_latents": 64, "num_latents": 8, "num_self_attends_per_block": 2},
    "RecurrentGemmaConfig": {"block_types": ["recurrent", "attention"]},
    "ReformerConfig": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "XLNetConfig": {"d_head": 16},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"mamba_headdim": 32, "n_mamba_heads": 4, "attention_head_dim": 32},
    "ZambaConfig": {"attention_head_dim": 32},
    "xLSTMConfig": {"chunk_size": 16},
}


def architectures() -> list[Architecture]:
    """Every causal, sequence-to-sequence and classification architecture, by class name."""
    mappings = {
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    found = {}
    for task, mapping in mappings.items():
        for name in mapping.values():
            found.setdefault(name, Architecture(name, task))
    return sorted(found.values(), key=lambda architecture: architecture.name)
