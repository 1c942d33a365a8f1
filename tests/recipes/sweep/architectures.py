"""Finds the architectures of the installed transformers and builds a toy of each from its own configuration class."""

from __future__ import annotations

import re
from collections.abc import Callable
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
    """A model class of transformers with the task: PEFT's name for it, or SPEECH, which PEFT has no name for."""

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

    def tokens(self) -> torch.Tensor:
        """Ids of two sequences of 12 tokens, int64."""
        ids = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
        if self.task == "SEQ_CLS":  # the head of BART and T5 reads the end's hidden state
            end = getattr(self.config, "eos_token_id", None)
            ids[:, -1] = end if isinstance(end, int) else 1
        return ids

    def inputs(self) -> dict[str, torch.Tensor]:
        """`tokens` with a mask that leaves out the second sequence's first two, and images or sounds."""
        ids = self.tokens()
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        return PERCEIVING[self.name](self.config, inputs) if self.name in PERCEIVING else inputs

    def decoder_inputs(self) -> dict[str, torch.Tensor]:
        """What an encoder-decoder's forward needs beside `inputs`."""
        return {"decoder_input_ids": self.tokens()} if self.task in ("SEQ_2_SEQ_LM", "SPEECH") else {}

    def targets(self) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([0, 1]) if self.task == "SEQ_CLS" else self.tokens()}


def shrunk(config_class: Any, wanted: dict[str, Any], options: dict[str, Any]) -> Any:
    """A small instance of ``config_class``: sizes by `SIZES`, then ``wanted`` where it has the attribute, then ``options``."""
    options = OPTIONS.get(config_class.__name__, {}) | options
    default = config_class()
    nested = {name: type(getattr(default, name)) for name in default.sub_configs if getattr(default, name, None) is not None}
    small: dict[str, Any] = {name: shrunk(kind, {}, options.get(name, {})) for name, kind in nested.items()}
    sizes = default.to_dict()
    layers, heads = (sizes.get(default.attribute_map.get(name, name)) for name in ("num_hidden_layers", "num_attention_heads"))
    for name, value in sizes.items():
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
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
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
    "BltConfig": {"num_hidden_layers": 2},
    "CanineConfig": {"num_hash_buckets": 64},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "DistilBertConfig": {"dim": 64, "hidden_dim": 128},
    "EsmConfig": {"vocab_size": VOCABULARY},
    "EsmcConfig": {"vocab_size": VOCABULARY},
    "FalconH1Config": {**MAMBA, "mamba_d_ssm": 128},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "intermediate_size": 128, "activation_sparsity_pattern": [0.95, 0.0]},
    "Gemma4UnifiedAssistantConfig": {"text_config": {"num_kv_shared_layers": 0}},
    "GraniteMoeHybridConfig": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "HrmTextConfig": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "LayoutLMv3Config": {"coordinate_size": 12, "shape_size": 8, "has_relative_attention_bias": False},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "CLIPVisionConfig": {"image_size": 28, "patch_size": 14, "projection_dim": 64},
    "LiltConfig": {"hidden_size": 96},
    "Mamba2Config": {"num_heads": 4, "head_dim": 32},
    "Mistral4Config": {"head_dim": 32},
    "MobileBertConfig": {"intra_bottleneck_size": 64},
    "NemotronHConfig": {"layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "PerceiverConfig": {"d_latents": 64, "num_latents": 8, "num_self_attends_per_block": 2},
    "RecurrentGemmaConfig": {"block_types": ["recurrent", "attention"]},
    "Qwen2_5_VLTextConfig": {"rope_parameters": {**ROPE, "mrope_section": [2, 2, 4]}},
    "Qwen2_5_VLVisionConfig": {"window_size": 112, "fullatt_block_indexes": [1]},
    "ReformerConfig": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "RwkvConfig": {"rescale_every": 0},
    "VibeVoiceAcousticTokenizerEncoderConfig": {"num_filters": 2},
    "VibeVoiceAsrConfig": {"acoustic_tokenizer_chunk_size": 3200},
    "XLNetConfig": {"d_head": 16},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"mamba_headdim": 32, "n_mamba_heads": 4, "attention_head_dim": 32, "attention_hidden_size": 128},
    "ZambaConfig": {"attention_head_dim": 32, "attention_hidden_size": 128, "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "xLSTMConfig": {"chunk_size": 16, "qk_dim_factor": 1.0},
}



def _llava(config: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs["input_ids"][:, 2:6] = config.image_token_id  # 2 by 2 patches
    return {**inputs, "pixel_values": torch.rand(2, 3, 28, 28)}


def _qwen_vl(config: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = inputs["input_ids"]
    ids[:, 2], ids[:, 3] = config.vision_start_token_id, config.image_token_id
    image = {"pixel_values": torch.rand(8, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 2, 2]] * 2)}
    return {**inputs, **image, "mm_token_type_ids": (ids == config.image_token_id).int()}


def _whisper(config: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"input_features": torch.rand(2, config.num_mel_bins, 2 * config.max_source_positions)}


# What the architectures that see or hear are given, by class name; images and sounds are float32.
PERCEIVING: dict[str, Callable[[Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "LlavaForConditionalGeneration": _llava,
    "Qwen2_5_VLForConditionalGeneration": _qwen_vl,
    "WhisperForConditionalGeneration": _whisper,
}
# By model type, what PEFT's "all-linear" finds and can't wrap: an output projection that a Mamba kernel reads, a linear
# layer that returns a tuple or works in groups, a module whose name ends in a trained head's name.
EXCLUDED = {
    "deepseek_v4": r".*o_a_proj",
    "distilbert": "pre_classifier",
    "falcon_h1": r".*\.out_proj",
    "falcon_mamba": r".*\.out_proj",
    "llama4_text": r".*\.router",
    "mamba": r".*\.out_proj",
    "mamba2": r".*\.out_proj",
    "nemotron_h": r".*\.out_proj",
    "phimoe": r".*\.router",
}
# By model type, a layer whose weight the model itself multiplies with, so it can't be in 4 bits.
UNQUANTIZED = {"longcat_flash": "classifier", "mamba": "dt_proj"}


def architectures() -> list[Architecture]:
    """Every causal, sequence-to-sequence and classification architecture, by class name."""
    mappings = {
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    found = {name: Architecture(name, "SPEECH" if name.startswith("Whisper") else "CAUSAL_LM") for name in PERCEIVING}
    for task, mapping in mappings.items():
        for name in mapping.values():
            found.setdefault(name, Architecture(name, task))
    return sorted(found.values(), key=lambda architecture: architecture.name)
