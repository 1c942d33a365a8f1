"""By class of diffusers, what a forward is given beside what the rules of ``diffusion`` find."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .inputs import random

STEPS, TIMES = torch.tensor([5, 500]), torch.tensor([0.3, 0.7])
PROMPT, MASK = random(2, 7, 64), torch.ones(2, 7).bool()


def _ids(*sizes: int) -> torch.Tensor:
    """Positions on a grid, a row each."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def _rotations(*sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = random(*sizes)
    return angles.cos(), angles.sin()


def _transformers(name: str) -> Any:
    return importlib.import_module(f"diffusers.models.transformers.transformer_{name}")


GIVEN: dict[str, dict[str, Any]] = {
    "AceStepTransformer1DModel": {
        **{"hidden_states": random(2, 16, 64), "context_latents": random(2, 16, 128)},
        **{"timestep": TIMES, "timestep_r": TIMES / 2, "encoder_hidden_states": PROMPT},
    },
    "AnyFlowFARTransformer3DModel": {
        **{"hidden_states": random(2, 4, 16, 8, 8), "chunk_partition": [1, 1, 2], "encoder_hidden_states": PROMPT},
        **{"timestep": random(2, 4), "r_timestep": random(2, 4) / 2},
    },
    "AnyFlowTransformer3DModel": {
        **{"hidden_states": random(2, 4, 16, 8, 8), "encoder_hidden_states": PROMPT},
        **{"timestep": random(2, 4), "r_timestep": random(2, 4) / 2},
    },
    "BriaFibo2Transformer2DModel": {
        **{"hidden_states": random(2, 32, 8, 8), "encoder_hidden_states": random(2, 2, 7, 64), "timestep": TIMES},
    },
    "BriaFiboTransformer2DModel": {
        **{"hidden_states": random(2, 16, 64), "text_encoder_layers": [PROMPT] * 4, "encoder_hidden_states": PROMPT},
    },
    "CogVideoXTransformer3DModel": {"hidden_states": random(2, 4, 16, 8, 8), "encoder_hidden_states": PROMPT},
    "ConsisIDTransformer3DModel": {"hidden_states": random(2, 4, 16, 8, 8), "encoder_hidden_states": PROMPT},
    "Cosmos3OmniTransformer": {
        **{
            "input_ids": torch.arange(7),
            "text_indexes": torch.arange(7),
            "position_ids": torch.arange(23).repeat(3, 1),
        },
        **{"und_len": 7, "sequence_length": 23, "vision_tokens": [random(1, 4, 1, 8, 8)]},
        **{"vision_token_shapes": [(1, 4, 4)], "vision_sequence_indexes": 7 + torch.arange(16)},
        **{"vision_mse_loss_indexes": 7 + torch.arange(16), "vision_timesteps": torch.full((16,), 500.0)},
        **{"vision_noisy_frame_indexes": [torch.tensor([0])]},
    },
    "CosmosTransformer3DModel": {
        **{"hidden_states": random(2, 16, 2, 8, 8), "fps": 24},
        **{"timestep": TIMES},
    },
    "DreamLiteTransformer2DModel": {"hidden_states": random(2, 32, 8, 8), "encoder_hidden_states": PROMPT},
    "EasyAnimateTransformer3DModel": {"hidden_states": random(2, 4, 2, 8, 8), "encoder_hidden_states": PROMPT},
    "ErnieImageTransformer2DModel": {
        **{"hidden_states": random(2, 128, 4, 4), "text_bth": PROMPT, "text_lens": torch.tensor([7, 5])},
    },
    "HiDreamImageTransformer2DModel": {
        **{"hidden_states": random(2, 4, 8, 8), "timesteps": STEPS, "encoder_hidden_states_t5": PROMPT},
        **{"encoder_hidden_states_llama3": [PROMPT] * 4, "pooled_embeds": random(2, 64)},
    },
    **{
        name: {
            **{"hidden_states": random(2, 4, 8, 8), "timestep": TIMES * 100, "encoder_hidden_states": PROMPT},
            **{"text_embedding_mask": MASK, "encoder_hidden_states_t5": PROMPT, "text_embedding_mask_t5": MASK},
            **{"image_meta_size": torch.tensor([[64, 64, 64, 64, 0, 0]] * 2), "style": torch.tensor([0, 0])},
            **{"image_rotary_emb": _rotations(16, 16)},
        }
        | more
        for name, more in (
            ("HunyuanDiT2DModel", {}),
            ("HunyuanDiT2DControlNetModel", {"controlnet_cond": random(2, 4, 8, 8)}),
        )
    },
    "HunyuanVideo15Transformer3DModel": {
        **{"hidden_states": random(2, 65, 2, 8, 8), "encoder_hidden_states": PROMPT, "encoder_attention_mask": MASK},
        **{"encoder_hidden_states_2": PROMPT, "encoder_attention_mask_2": MASK, "image_embeds": PROMPT},
        **{"timestep": TIMES * 100},
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        **{"hidden_states": random(2, 16, 4, 8, 8), "encoder_hidden_states": PROMPT, "encoder_attention_mask": MASK},
        **{"image_embeds": PROMPT, "indices_latents": 23 + torch.arange(4)},
        **{"latents_clean": random(2, 16, 2, 8, 8), "indices_latents_clean": torch.tensor([0, 22])},
        **{"latents_history_2x": random(2, 16, 2, 8, 8), "indices_latents_history_2x": torch.tensor([20, 21])},
        **{"latents_history_4x": random(2, 16, 16, 8, 8)},
        "indices_latents_history_4x": 4 + torch.arange(16),
    },
    "I2VGenXLUNet": {
        **{"sample": random(2, 4, 2, 32, 32), "fps": torch.tensor([8, 8]), "image_latents": random(2, 4, 2, 32, 32)},
        **{"image_embeddings": random(2, 64), "encoder_hidden_states": PROMPT},
    },
    "Ideogram4Transformer2DModel": {
        **{"hidden_states": random(2, 23, 128), "encoder_hidden_states": random(2, 23, 64), "timestep": TIMES},
        **{"position_ids": torch.arange(23)[None, :, None].repeat(2, 1, 3), "segment_ids": torch.ones(2, 23).long()},
        **{"indicator": torch.tensor([[3] * 7 + [2] * 16] * 2)},
    },
    "JoyImageEditPlusTransformer3DModel": {
        **{"hidden_states": random(2, 16, 16, 1, 2, 2), "encoder_hidden_states": PROMPT},
        **{"encoder_hidden_states_mask": torch.ones(2, 7), "shape_list": [[(1, 4, 4)]] * 2},
    },
    "JoyImageEditTransformer3DModel": {"hidden_states": random(2, 16, 2, 8, 8), "encoder_hidden_states": PROMPT},
    "Kandinsky3UNet": {
        **{"sample": random(2, 4, 16, 16), "encoder_hidden_states": PROMPT, "encoder_attention_mask": torch.ones(2, 7)},
    },
    "Kandinsky5Transformer3DModel": {
        **{
            "hidden_states": random(2, 2, 8, 8, 4),
            "encoder_hidden_states": PROMPT,
            "pooled_projections": random(2, 64),
        },
        **{"visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)], "text_rope_pos": torch.arange(7)},
    },
    "Kandinsky6SRTransformer3DModel": {"hidden_states": random(2, 2, 8, 8, 129), "timestep": TIMES},
    "Kandinsky6Transformer3DModel": {
        **{"hidden_states": random(2, 2, 8, 8, 33), "encoder_hidden_states": PROMPT, "timestep": TIMES},
        **{"pooled_projections": random(2, 64), "audio_hidden_states": random(2, 5, 20)},
    },
    "Krea2Transformer2DModel": {
        **{"hidden_states": random(2, 16, 64), "encoder_hidden_states": random(2, 7, 2, 64), "timestep": TIMES},
        **{"position_ids": torch.arange(23)[:, None].repeat(1, 3)},
    },
    "LTX2VideoTransformer3DModel": {
        **{"hidden_states": random(2, 32, 128), "audio_hidden_states": random(2, 5, 64)},
        **{"encoder_hidden_states": PROMPT, "audio_encoder_hidden_states": PROMPT, "timestep": STEPS},
        **{"num_frames": 2, "height": 4, "width": 4, "audio_num_frames": 5},
    },
    "LatteTransformer3DModel": {
        "encoder_attention_mask": None,
        "hidden_states": random(2, 4, 2, 8, 8),
        "timestep": STEPS,
        "encoder_hidden_states": PROMPT,
    },
    "LongCatAudioDiTTransformer": {
        **{"hidden_states": random(2, 16, 64), "encoder_hidden_states": PROMPT, "encoder_attention_mask": MASK},
        **{"timestep": TIMES},
    },
    "LongCatAudioDiTVae": {"sample": random(2, 1, 256)},
    "Lumina2Transformer2DModel": {
        **{"hidden_states": random(2, 16, 8, 8), "encoder_attention_mask": MASK, "timestep": TIMES},
    },
    "LuminaNextDiT2DModel": {
        **{"hidden_states": random(2, 4, 8, 8), "encoder_mask": MASK, "timestep": TIMES, "cross_attention_kwargs": {}},
        **{"image_rotary_emb": torch.polar(torch.ones(4, 4, 8), random(4, 4, 8))},
    },
    "MiniMaxH3Transformer3DModel": {
        **{"hidden_states": random(2, 16, 96), "audio_hidden_states": random(2, 5, 32), "timestep": TIMES},
        **{"encoder_hidden_states": PROMPT, "timestep_indices": torch.tensor([0] * 7 + [1] * 21)},
        **{"token_tags": torch.tensor([1] * 7 + [0] * 16 + [2] * 5), "position_ids": _ids(28, 1, 1)},
        **{
            "text_indices": torch.arange(7),
            "video_indices": 7 + torch.arange(16),
            "audio_indices": 23 + torch.arange(5),
        },
    },
    "MiniMaxMusic3Transformer1DModel": {
        **{"hidden_states": random(2, 128, 16), "encoder_hidden_states": random(2, 16, 64), "timestep": TIMES},
    },
    "OmniGenTransformer2DModel": {
        **{"hidden_states": random(2, 4, 8, 8), "timestep": TIMES, "input_ids": torch.arange(14).view(2, 7)},
        **{"input_img_latents": [], "input_image_sizes": {}, "attention_mask": torch.ones(2, 24, 24)},
        **{"position_ids": torch.arange(24)[None].repeat(2, 1)},
    },
    "QwenImage21Transformer2DModel": {
        **{"hidden_states": random(2, 16, 64), "encoder_hidden_states": PROMPT, "timestep": TIMES[:1]},
        **{"img_shapes": [[(1, 4, 4)]] * 2, "img_mask": torch.tensor([[False] * 7 + [True] * 4] * 2)},
        **{"encoder_hidden_states_mask": MASK},
    },
    "RFD4ProteinaTransformer": {
        **{
            "bb_ca": random(2, 9, 3),
            "local_latents": random(2, 9, 32),
            "bb_ca_time": TIMES,
            "local_latents_time": TIMES,
        },
        **{"padding_mask": torch.ones(2, 9).bool(), "token_type": torch.zeros(2, 9).long()},
        "conditioning": {
            **{
                "is_in_context_conditioning": torch.zeros(2, 9).bool(),
                "supports_local_latent": torch.ones(2, 9).bool(),
            },
        },
    },
    "SanaWMLTX2RefinerTransformer3DModel": {
        **{"hidden_states": random(2, 32, 128), "encoder_hidden_states": PROMPT, "timestep": random(2, 32) * 1000},
        **{"video_rotary_emb": _rotations(2, 32, 64)},
    },
    "SanaWMTransformer3DModel": {
        **{
            "hidden_states": random(2, 128, 2, 4, 4),
            "timestep": STEPS.view(2, 1, 1).repeat(1, 1, 2),
            "encoder_hidden_states": PROMPT,
        },
        **{"encoder_attention_mask": torch.ones(2, 7)},
    },
    "StableAudio3DiTModel": {
        **{"hidden_states": random(2, 64, 16), "encoder_hidden_states": PROMPT, "global_hidden_states": random(2, 64)},
        **{"timestep": TIMES},
    },
    "StableCascadeUNet": {
        **{"sample": random(2, 16, 8, 8), "timestep_ratio": TIMES, "clip_text_pooled": random(2, 1, 64)},
        **{"clip_text": PROMPT, "clip_img": random(2, 1, 64)},
    },
    "UNet1DModel": {"sample": random(2, 2, 64)},
    "UNetMotionModel": {"sample": random(2, 4, 2, 16, 16), "encoder_hidden_states": random(4, 7, 64)},
    "UNetControlNetXSModel": {"controlnet_cond": random(2, 3, 64, 64)},
    "UNetSpatioTemporalConditionModel": {"sample": random(2, 2, 8, 16, 16), "encoder_hidden_states": random(2, 1, 64)},
    "WanVACETransformer3DModel": {
        **{"hidden_states": random(2, 16, 2, 8, 8), "control_hidden_states": random(2, 64, 2, 8, 8)},
        **{"encoder_hidden_states": PROMPT},
    },
    "WanAnimate2Transformer3DModel": {
        **{
            "hidden_states": [random(16, 2, 8, 8)] * 2,
            "condition_latents": [random(20, 2, 8, 8)] * 2,
            "timestep": STEPS,
        },
        **{"encoder_hidden_states": [random(7, 64)] * 2, "kv_cache_mode": "extract", "seq_len": 32},
        **{"encoder_hidden_states_image": random(2, 257, 1280), "offset_grid_sizes": torch.tensor([[2, 4, 4]] * 2)},
        "kv_cache": lambda: _transformers("wan_animate_2").WanAnimate2KVCache(2),
    },
    "WanAnimateTransformer3DModel": {
        **{"hidden_states": random(2, 36, 3, 8, 8), "pose_hidden_states": random(2, 16, 2, 8, 8)},
        **{"face_pixel_values": random(2, 3, 5, 16, 16), "encoder_hidden_states": PROMPT},
    },
    "ZImageTransformer2DModel": {
        **{"x": [random(16, 1, 8, 8)] * 2, "t": TIMES, "cap_feats": [random(7, 64), random(5, 64)]},
    },
}
