"""By class of diffusers, arguments of ``__init__`` that the rules of ``diffusion`` get wrong, and what has no toy."""

from __future__ import annotations

from typing import Any

AXES = (4, 6, 6)  # shares of a rotary embedding in a head of 16

ARGUMENTS: dict[str, dict[str, Any]] = {
    "AnyFlowFARTransformer3DModel": {"chunk_partition": (1, 1, 2)},
    "BriaFibo2Transformer2DModel": {
        **{"dim": 64, "n_layers": 2, "n_heads": 4, "axes_dims": AXES, "injection_layer_ids": (1,)},
        **{"min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 2},
        **{"gist_min_text_len": 4, "gist_max_text_len": 16},
    },
    "CogVideoXTransformer3DModel": {"max_text_seq_length": 7, "sample_frames": 13},
    "ConsisIDTransformer3DModel": {"max_text_seq_length": 7, "sample_frames": 13},
    "Cosmos3OmniTransformer": {
        "rope_scaling": {"mrope_section": [2, 3, 3]},
        "latent_channel": 4,
        "patch_latent_dim": 16,
    },
    "CosmosTransformer3DModel": {"max_size": (8, 16, 16), "concat_padding_mask": False},
    "DreamLiteTransformer2DModel": {"in_channels": 32, "cross_attention_dim": 64},
    "EasyAnimateTransformer3DModel": {"in_channels": 4, "out_channels": 4, "patch_size": 2, "mmdit_layers": 1},
    "ErnieImageTransformer2DModel": {"rope_axes_dim": AXES},
    "HiDreamImageTransformer2DModel": {
        **{"patch_size": 2, "in_channels": 4, "caption_channels": [64, 64], "llama_layers": [0, 1, 2, 3]},
        **{"axes_dims_rope": (8, 4, 4), "max_resolution": (8, 8)},
    },
    **{
        name: {"cross_attention_dim_t5": 64, "cross_attention_dim": 64, "text_len": 7, "text_len_t5": 7, **more}
        for name, more in (("HunyuanDiT2DModel", {}), ("HunyuanDiT2DControlNetModel", {"transformer_num_layers": 4}))
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        **{"has_clean_x_embedder": True, "has_image_proj": True, "image_proj_dim": 64, "rope_axes_dim": AXES},
    },
    "Ideogram4Transformer2DModel": {"mrope_section": (4, 2, 2)},
    "JoyImageEditPlusTransformer3DModel": {"rope_dim_list": list(AXES)},
    "JoyImageEditTransformer3DModel": {"rope_dim_list": list(AXES)},
    "Kandinsky3UNet": {"groups": 8, "block_out_channels": (32, 32, 64, 64)},
    "Kandinsky5Transformer3DModel": {"axes_dims": AXES, "ff_dim": 128, "in_text_dim2": 64},
    "Kandinsky6SRTransformer3DModel": {"axes_dims": AXES, "ff_dim": 128, "num_visual_blocks": 1},
    "Kandinsky6Transformer3DModel": {"axes_dims": AXES, "ff_dim": 128, "in_text_dim2": 64},
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "caption_channels": 64,
        "cross_attention_dim": 64,
        "norm_type": "ada_norm_single",
        "video_length": 2,
    },
    "LongCatAudioDiTVae": {
        "channels": 16,
        "c_mults": [1, 2],
        "strides": [2, 2],
        "latent_dim": 8,
        "encoder_latent_dim": 16,
    },
    "Lumina2Transformer2DModel": {"axes_dim_rope": AXES, "axes_lens": (300, 16, 16), "num_kv_heads": 2},
    "LuminaNextDiT2DModel": {"num_kv_heads": 2},
    "MiniMaxH3Transformer3DModel": {"attention_head_dim": 24, "rope_freq_dim": 4},
    "MiniMaxMusic3Transformer1DModel": {"rotary_dim": 8},
    "OmniGenTransformer2DModel": {"pad_token_id": 0, "rope_scaling": {"short_factor": [1] * 8, "long_factor": [1] * 8}},
    "PRXTransformer2DModel": {"axes_dim": [8, 8], "hidden_size": 64},
    "PriorTransformer": {"num_embeddings": 7, "additional_embeddings": 4},
    "StableCascadeUNet": {
        **{"block_out_channels": (32, 32), "num_attention_heads": (2, 2), "conditioning_dim": 64},
        **{"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_in_channels": 64},
        **{"clip_text_pooled_in_channels": 64, "clip_image_in_channels": 64},
    },
    "RFD4ProteinaTransformer": {
        **{"feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"), "feats_pair_repr": ("xt_bb_ca_pair_dists",)},
        **{"feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"), "nlayers": 2, "tri_mult_c": 32},
    },
    "SanaWMTransformer3DModel": {"linear_head_dim": 16},
    "UNet1DModel": {"extra_in_channels": 64},
    "Transformer2DModel": {"in_channels": 32, "cross_attention_dim": 64, "patch_size": None},
    "TransformerTemporalModel": {"in_channels": 32},
    "UNet2DModel": {"sample_size": 16},
    "UNetSpatioTemporalConditionModel": {
        "num_attention_heads": (2, 2, 2, 2),
        "projection_class_embeddings_input_dim": 192,
    },
    "WanAnimate2Transformer3DModel": {"in_dim": 36, "text_len": 7},
    "WanAnimateTransformer3DModel": {
        **{"motion_encoder_size": 16, "motion_style_dim": 64, "image_dim": 64, "inject_face_latents_blocks": 1},
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    },
    "WanVACETransformer3DModel": {"vace_layers": [0, 1]},
    "ZImageTransformer2DModel": {
        **{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "axes_dims": AXES, "axes_lens": (64, 16, 16)},
    },
}


# Linear layers that can't be in 4 bits, by a pattern of their names.
KEPT = {
    "UNetMotionModel": r".*motion_modules\..*\.proj_(in|out)",  # called by keyword, which bitsandbytes does not know
}
# Why there is no toy.
LEFT_OUT = {
    "HunyuanDiT2DMultiControlNetModel": "it is a list of HunyuanDiT2DControlNetModel, which has a toy",
}
