"""By configuration class of transformers, what generic shrinking gets wrong."""

from __future__ import annotations

from typing import Any

from .sizes import VOCABULARY

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
    "AlignConfig": {"projection_dim": 128},
    "BambaConfig": {**MAMBA, "attn_layer_indices": [1]},
    "BeitConfig": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "Blip2Config": {"image_token_index": 300},
    "BltConfig": {"num_hidden_layers": 2},
    "CLIPVisionConfig": {"image_size": 28, "patch_size": 14, "projection_dim": 64},
    "CanineConfig": {"num_hash_buckets": 64},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 300, **{f"IMGIMG{'ABCDEFGH'[i]}Z": 301 + i for i in range(8)}}},
    "ClapAudioConfig": {"hidden_size": 512},
    "ClvpConfig": {"projection_dim": 128},
    "ClvpDecoderConfig": {"hidden_size": 128},
    "ClvpEncoderConfig": {"vocab_size": VOCABULARY, "hidden_size": 128, "projection_dim": 128},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "DPTConfig": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "Data2VecVisionConfig": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "DeepseekOcr2TextConfig": {
        **{"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    },
    "DepthProConfig": {"patch_size": 64, "intermediate_hook_ids": [1, 0]},
    "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
    "DistilBertConfig": {"dim": 64, "hidden_dim": 128},
    "DonutSwinConfig": {"window_size": 2},  # as small as the last stage's images
    "Dots3NoteAudioConfig": {"adapter_input_size": 64},
    "EfficientNetConfig": {"hidden_dim": 2560},
    "Emu3Config": {
        "vocabulary_map": {
            **{"<image>": 250, "<|extra_200|>": 251},
            **{f"<|visual token {index:06}|>": 252 + index for index in range(64)},
        }
    },
    "Emu3VQVAEConfig": {"codebook_size": 64, "base_channels": 32},
    "Ernie4_5_VLMoeTextConfig": {"rope_parameters": {**ROPE, "mrope_section": [3, 3, 2]}},
    "EsmConfig": {"vocab_size": VOCABULARY},
    "EsmcConfig": {"vocab_size": VOCABULARY},
    "Exaone4_5_VisionConfig": {"window_size": 112, "fullatt_block_indexes": [1]},
    "FalconH1Config": {**MAMBA, "mamba_d_ssm": 128},
    "Gemma3nTextConfig": {
        "num_kv_shared_layers": 0,
        "intermediate_size": 128,
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "Glm4vMoeTextConfig": _HALF_OF_SHARES,
    "Glm5NextTextConfig": {"index_topk": 8, "index_kpool": 2},
    "GlmOcrTextConfig": _HALF_OF_SHARES,
    "Granite4VisionConfig": {
        **{"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1], "downsample_rate": "1/2"},
    },
    "FastSpeech2ConformerConfig": {"speaking_speed": 1e-3},  # each token lasts one frame, whatever the rounding
    "GraniteMoeHybridConfig": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "HieraConfig": {"decoder_hidden_size": 64, "decoder_depth": 1, "decoder_num_heads": 4},
    "HrmTextConfig": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "HunYuanVLTextConfig": _SHARES,
    "InstructBlipConfig": {"image_token_index": 300},
    "InstructBlipVideoConfig": {"video_token_index": 300},
    "JanusVQVAEConfig": {"base_channels": 32},
    "Kosmos2Config": {"latent_query_num": 8},
    "LayoutLMv3Config": {"coordinate_size": 12, "shape_size": 8, "has_relative_attention_bias": False},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "LiltConfig": {"hidden_size": 96},
    "Llama4VisionConfig": {"intermediate_size": 256},
    "LwDetrConfig": {"projector_scale_factors": [1.0]},
    "LwDetrViTConfig": {"num_windows": 4},
    "Mamba2Config": {"num_heads": 4, "head_dim": 32},
    "MaskFormerSwinConfig": {"window_size": 2},
    "MimiConfig": {"upsample_groups": 64},
    "Mistral4Config": {"head_dim": 32},
    "MllamaVisionConfig": {"intermediate_layers_indices": [0, 1], "num_global_layers": 1},
    "MobileBertConfig": {"intra_bottleneck_size": 64},
    "Molmo2AdapterConfig": {"vision_feature_layer": [1, 0]},
    "MoonshineStreamingConfig": {"num_key_value_heads": 4, "encoder_hidden_size": 64},
    "MuseSparkAudioConfig": {"num_hidden_layers": 4, "patch_sizes": [16, 6, 5, 4]},
    "NemotronHConfig": {"layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "NeuCodecConfig": {"quantization_dim": 128},
    "PI0Config": {"chunk_size": 8},
    "PPDocLayoutV2Config": {"class_thresholds": [0.5] * 2, "num_labels": 2, "class_order": [0, 1]},
    "PPDocLayoutV2ReadingOrderConfig": {"max_2d_position_embeddings": 1024},
    "PerceiverConfig": {
        "num_cross_attention_heads": 1,
        "d_latents": 64,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
    },
    "Qwen2_5OmniThinkerConfig": {"vision_start_token_id": 310},
    "Qwen2_5OmniVisionEncoderConfig": {"window_size": 112, "fullatt_block_indexes": [1]},
    "Qwen2_5_VLVisionConfig": {"window_size": 112, "fullatt_block_indexes": [1]},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 64},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 310},
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
    "Sam2HieraDetConfig": {"hidden_size": 96, "blocks_per_stage": [1, 2, 1, 1], "global_attention_blocks": [2]},
    "Sam2VisionConfig": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "Sam3VisionConfig": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "Sam3LiteTextTextConfig": {"num_hidden_layers": 3},  # the first and the last are convolutions
    "Sapiens2Config": {
        "head_config": {
            **{"upsample_out_channels": [32], "conv_out_channels": [32], "use_pixel_shuffle": True},
            **{"scale_conv_out_channels": [32], "scale_final_hidden_sizes": [32, 32]},
        },
        "num_key_value_heads_per_layer": [4, 2],
    },
    "ShieldGemma2Config": {"mm_tokens_per_image": 4, "yes_token_index": 7, "no_token_index": 8},
    "Step3p7TextConfig": {"sliding_window": 8},
    "SwinConfig": {"window_size": 2, "num_layers": 4},
    "Swinv2Config": {"window_size": 2, "num_layers": 4},
    "T5Gemma2TextConfig": {"dropout_rate": 0.0},
    "VibeVoiceAcousticTokenizerConfig": {"num_filters": 2},
    "VibeVoiceAcousticTokenizerEncoderConfig": {"num_filters": 2},
    "VibeVoiceAsrConfig": {"acoustic_tokenizer_chunk_size": 3200},
    "VitsConfig": {
        **{"upsample_initial_channel": 32, "flow_size": 64},
        **{"noise_scale": 0.0, "noise_scale_duration": 0.0},  # each dtype draws another noise
        "speaking_rate": 1000.0,  # each token lasts one frame, whatever the rounding
    },
    "XLNetConfig": {"d_head": 16},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"mamba_headdim": 32, "n_mamba_heads": 4, "attention_head_dim": 32, "attention_hidden_size": 128},
    "ZambaConfig": {
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "ZoeDepthConfig": {"bottleneck_features": 64},
    "xLSTMConfig": {"chunk_size": 16, "qk_dim_factor": 1.0},
}
# By model class, why there is no toy.
LEFT_OUT = {
    **dict.fromkeys(
        ("EdgeTamVideoModel", "Sam2VideoModel", "Sam3TrackerVideoModel", "Sam3VideoModel"),
        "each call changes the session of frames that it is given",
    ),
    **dict.fromkeys(
        (
            *("PPOCRV5ServerDetForObjectDetection", "PPOCRV6MediumDetForObjectDetection", "PPOCRV6MediumDetModel"),
            *("PPOCRV6SmallDetForObjectDetection", "PPOCRV6SmallDetModel"),
        ),
        "it has no linear layer",
    ),
}
# By model class, the same for it alone; a part's by the part's name.
OF_MODEL: dict[str, dict[str, Any]] = {
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}},
    "Sapiens2ForImageMatting": {"num_labels": 4},
    "T5GemmaEncoderModel": {"is_encoder_decoder": False},
}
# By configuration class, parameters that the forward calls optional and does not run without.
NEEDED_INPUTS = {
    "BrosConfig": ["bbox"],
    "LxmertConfig": ["visual_feats", "visual_pos"],
    "Siglip2Config": ["pixel_attention_mask", "spatial_shapes"],
    "Siglip2VisionConfig": ["pixel_attention_mask", "spatial_shapes"],
}
