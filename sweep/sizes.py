"""What a toy is made of: its sizes, its inputs, and the few architectures that generic rules get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 320

# Sizes by attribute name, first match wins; a size is only ever made smaller.
SIZES: list[tuple[str, int]] = [
    (r"num_feat_extract_layers", 99),  # as many as the convolutions, which keep theirs
    (r".*vocab.*", VOCABULARY),
    (r".*(layers|layer|depth|blocks|layers_per_stack)", 2),
    (r".*(key_value|kv|query)_(heads|groups)|n_head_kv|kv_n_heads|.*n_?groups?|num_expert_group|topk_group", 2),
    (r".*(num_mamba_heads|mamba_n_heads|mamba_num_heads)", 4),
    (r".*heads?|.*n_heads", 4),
    (r"qk_head_dim", 32),
    (r".*head_?dim|dim_head|d_kv|d_head|.*head_size|kv_channels|.*rank|rotary_dim", 16),
    (r".*(per_tok|per_token|top_?k|moe_k|cross_attn_k)", 2),
    (r".*(experts?|expert_num)", 4),
    (r".*(intermediate.*size.*|ffn_dim|d_ff|dff|dim_ff|d_inner|ffn_hidden_size|feed_forward_size|mlp_dim)", 128),
    (r".*(hidden_size|d_model|n_embd|_dim|_width|embedding_size|embed_size|hidden_dim|embedding_dim|size_global)", 64),
    (r".*(position.*|n_positions|n_ctx|seq_len|context_length|source_positions|max_pos_emb|model_max_length)", 256),
    (r".*(window.*|chunk_size|block_size)", 8),
    (r".*period", 2),
    (r"image_size|img_size", 64),
    (r".*num_queries", 10),
    (r"num_frames|frames_per_clip", 4),
    (r".*(layer_offset|step|interval|replace|every_n_layers)", 1),
    (r".*state(_size)?|d_state", 16),
]
# The same for each of several sizes, one a stage.
LISTS: list[tuple[str, int]] = [
    (r".*(depths|blocks|num_.*layers)", 1),
    (r".*heads?", 2),
    (r".*(hidden_sizes|_dims?|channels|widths?|dims)", 64),
    (r".*image_size|img_size|input_size", 64),
    (r".*window_sizes", 8),
]
# What is made smaller where a model runs at no other widths than its own.
MILD: list[tuple[str, int]] = [
    (r"num_feat_extract_layers", 99),  # as many as the convolutions, which keep theirs
    (r".*vocab.*", VOCABULARY),
    (r".*(hidden_layers|num_layers|decoder_layers|encoder_layers|n_layers?|layers_per_stack)", 2),
    (r"image_size|img_size", 224),
]
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
    "prediction_length": 8,
    "vocab_size": VOCABULARY,
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
# Model types that can't train with reentrant checkpointing, whose blocks read what is no argument of theirs or has a
# graph of its own: WavLM's layers hand their position bias on, and each is computed anew with all that came before it
# (modeling_wavlm.py); DiffusionGemma's decoder reads the encoder's keys in a cache (modeling_diffusion_gemma.py).
UNCHECKPOINTED = ("diffusion_gemma", "wavlm")
# By model type, a layer whose weight the model itself multiplies with, so it can't be in 4 bits; or whose name is a
# number, which PEFT takes for other modules' (0.21.2, transformers_weight_conversion.py, of fused experts).
UNQUANTIZED = {"longcat_flash": "classifier", "mamba": "dt_proj", "qwen3_omni_moe_thinker": r".*merger"}
