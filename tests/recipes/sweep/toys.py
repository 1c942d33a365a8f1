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
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
# Those whose rotary embedding has three shares, in the configuration of their text.
_SHARES = {"rope_parameters": {**ROPE, "mrope_section": [2, 2, 4]}}
_HALF_OF_SHARES = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}
_SHARED = (
    *("CohereCompass", "Cosmos3Edge", "Glm4v", "PaddleOCR", "Qwen2_5Omni", "Qwen2VL"),
    *("Qwen3OmniMoe", "Qwen3VL", "Qwen3VLMoe", "GlmImage", "Qwen2_5_VL"),
)
# By configuration class, what generic shrinking gets wrong.
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"{name}TextConfig": _SHARES for name in _SHARED},
    "Glm4vMoeTextConfig": _HALF_OF_SHARES,
    "GlmOcrTextConfig": _HALF_OF_SHARES,
    "BambaConfig": {**MAMBA, "attn_layer_indices": [1]},
    "BltConfig": {"num_hidden_layers": 2},
    "CLIPVisionConfig": {"image_size": 28, "patch_size": 14, "projection_dim": 64},
    "CanineConfig": {"num_hash_buckets": 64},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "DistilBertConfig": {"dim": 64, "hidden_dim": 128},
    "EsmConfig": {"vocab_size": VOCABULARY},
    "EsmcConfig": {"vocab_size": VOCABULARY},
    "FalconH1Config": {**MAMBA, "mamba_d_ssm": 128},
    "Gemma3nTextConfig": {
        "num_kv_shared_layers": 0,
        "intermediate_size": 128,
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "GraniteMoeHybridConfig": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "HrmTextConfig": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "LayoutLMv3Config": {"coordinate_size": 12, "shape_size": 8, "has_relative_attention_bias": False},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "LiltConfig": {"hidden_size": 96},
    "Mamba2Config": {"num_heads": 4, "head_dim": 32},
    "Mistral4Config": {"head_dim": 32},
    "MobileBertConfig": {"intra_bottleneck_size": 64},
    "NemotronHConfig": {"layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "PerceiverConfig": {"d_latents": 64, "num_latents": 8, "num_self_attends_per_block": 2},
    "Qwen2_5_VLVisionConfig": {"window_size": 112, "fullatt_block_indexes": [1]},
    "RecurrentGemmaConfig": {"block_types": ["recurrent", "attention"]},
    "ReformerConfig": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,  # with any, it seeds itself anew at each call
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    },
    "RwkvConfig": {"rescale_every": 0},
    "VibeVoiceAcousticTokenizerEncoderConfig": {"num_filters": 2},
    "VibeVoiceAsrConfig": {"acoustic_tokenizer_chunk_size": 3200},
    "DonutSwinConfig": {"window_size": 2},  # as small as the last stage's images
    "MaskFormerSwinConfig": {"window_size": 2},
    "SwinConfig": {"window_size": 2},
    "Swinv2Config": {"window_size": 2},
    "XLNetConfig": {"d_head": 16},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"mamba_headdim": 32, "n_mamba_heads": 4, "attention_head_dim": 32, "attention_hidden_size": 128},
    "ZambaConfig": {
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
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
# By configuration class, parameters that the forward calls optional and does not run without.
NEEDED_INPUTS = {
    "BrosConfig": ["bbox"],
    "LxmertConfig": ["visual_feats", "visual_pos"],
    "Siglip2Config": ["pixel_attention_mask", "spatial_shapes"],
    "Siglip2VisionConfig": ["pixel_attention_mask", "spatial_shapes"],
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
# Model types whose backward never ends with reentrant checkpointing: each layer hands its position bias to the next
# (modeling_wavlm.py), and each bias is computed anew with all that came before it.
UNCHECKPOINTED = ("wavlm",)
# By model type, a layer whose weight the model itself multiplies with, so it can't be in 4 bits.
UNQUANTIZED = {"longcat_flash": "classifier", "mamba": "dt_proj"}
