"""By model class of transformers, what a forward is given that ``inputs`` would not guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .inputs import BATCH, TOKENS, Guess, Sizes, random, tokens

SOUND = random(BATCH, 8000) - 0.5
MEL = random(BATCH, 128, 80)


def _separated(sizes: Sizes) -> torch.Tensor:
    ids = tokens()
    ids[:, [4, 7, 11]] = sizes.number("sep_token_id", default=2)
    return ids


def _asking(sizes: Sizes) -> torch.Tensor:
    ids = tokens() % 90
    ids[:, 3] = sizes.number("question_token_id", default=104)
    return ids


def _codes(sizes: Sizes) -> torch.Tensor:
    return tokens().repeat(sizes.number("num_codebooks", default=4), 1)


def _streams(sizes: Sizes) -> torch.Tensor:
    return tokens()[..., None].repeat(1, 1, sizes.number("num_codebooks", default=32) + 1)


def _prefix(sizes: Sizes) -> torch.Tensor:
    ids = tokens()
    ids[:, 1:5] = sizes.number("image_token_id", "image_token_index", default=300)
    return ids


def _where_seen(sizes: Sizes) -> torch.Tensor:
    seen = torch.zeros(BATCH, 24, dtype=torch.bool)
    seen[:, 1 : 1 + sizes.number("latent_query_num", default=64)] = True
    return seen


def _frames(sizes: Sizes) -> torch.Tensor:
    channels, height, width = sizes.image
    return random(BATCH, 4, channels, height, width)


def _masked_patches(sizes: Sizes) -> torch.Tensor:
    _, height, width = sizes.image
    frames = sizes.number("num_frames", default=1) // sizes.number("tubelet_size", default=1)
    mask = torch.zeros(BATCH, frames * (height // sizes.side) * (width // sizes.side), dtype=torch.bool)
    mask[:, ::2] = True
    return mask


def _tall(sizes: Sizes) -> torch.Tensor:
    """Half of an image that SegGPT sees below its prompt's."""
    channels, height, width = sizes.image
    return random(BATCH, channels, height // 2, width)


_CODES = {"decoder_input_ids": _codes}
_CLIP_QUESTION = {"qformer_input_ids": tokens(), "input_ids": tokens()}
_SEEN = {
    "pixel_values": lambda sizes: random(BATCH, 1, *sizes.image),
    "image_attention_mask": torch.ones(BATCH, TOKENS, 1),
}
_FRAMES = {"pixel_values": _frames, **_CLIP_QUESTION}
_TEXT_AND_IMAGE = {"input_ids": tokens(below=64)}
_SPOKEN = {
    "decoder_input_values": random(BATCH, TOKENS, 80),
    "speaker_embeddings": lambda sizes: random(BATCH, sizes.number("speaker_embedding_dim", default=64)),
}
_DEPTH = {"pixel_values": random(BATCH, 3, 256, 256)}
_KOSMOS2 = {"input_ids": tokens(24), "image_embeds_position_mask": _where_seen}
_KYUTAI = {"input_ids": _streams, "attention_mask": None}
_MINICPM = {"pixel_values": random(1, 3, 16, 32 * 16), "target_sizes": torch.tensor([[4, 4]] * BATCH)}
_PERCEIVER = {"inputs": random(BATCH, 3, 224, 224), "pixel_values": None}

GIVEN: dict[str, dict[str, Any]] = {
    "AudioFlamingo3Encoder": {"input_features_mask": torch.ones(BATCH, 200).long()},
    "Blip2ForImageTextRetrieval": {"input_ids": tokens(44)},
    "BlipForConditionalGeneration": {"input_ids": tokens()},
    "Blip2QFormerModel": {
        "encoder_hidden_states": lambda sizes: random(BATCH, 7, sizes.number("encoder_hidden_size", default=64))
    },
    "ClvpModelForConditionalGeneration": {"input_features": random(BATCH, 80, 128)},
    "DepthProForDepthEstimation": _DEPTH,
    "DepthProModel": _DEPTH,
    "ClapModel": {"input_features": random(BATCH, 1, 1001, 64), "is_longer": torch.zeros(BATCH, 1).bool()},
    "DecisionTransformerModel": {
        **{"states": random(BATCH, 5, 17), "actions": random(BATCH, 5, 4), "rewards": random(BATCH, 5, 1)},
        **{"returns_to_go": random(BATCH, 5, 1), "timesteps": torch.arange(5).repeat(BATCH, 1)},
        "attention_mask": torch.ones(BATCH, 5),
    },
    "FunAsrNanoEncoder": {
        "input_features": random(BATCH, 20, 560),
        "input_features_mask": torch.ones(BATCH, 20).long(),
    },
    "Gemma3nAudioEncoder": {
        **{"audio_mel": random(BATCH, 128, 128), "audio_mel_mask": torch.zeros(BATCH, 128).bool()},
    },
    "Gemma4VisionModel": {
        **{
            "pixel_values": random(BATCH, 36, 768),
            "pixel_position_ids": torch.cartesian_prod(*[torch.arange(6)] * 2).repeat(BATCH, 1, 1),
        },
    },
    "GraniteSpeech5Encoder": {"input_features": random(BATCH, 128, 320)},
    "GraniteSpeech5ForCTC": {"input_features": random(BATCH, 128, 320)},
    "IdeficsForVisionText2Text": _SEEN,
    "IdeficsModel": _SEEN,
    "Inkling2VisionModel": {"pixel_values": random(32, 40, 40, 3), "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH)},
    "InstructBlipForConditionalGeneration": _CLIP_QUESTION,
    "InstructBlipModel": _CLIP_QUESTION,
    "InstructBlipVideoForConditionalGeneration": _FRAMES,
    "InstructBlipVideoModel": _FRAMES,
    "JevForDecision": {
        **{"input_ids": tokens()[:1], "marks": torch.tensor([[4, 8, 12]]), "num_options": torch.tensor([[2, 3, 2]])},
        **{"question_type_ids": torch.tensor([[0, 1, 2]])},
    },
    "Kosmos2ForConditionalGeneration": _KOSMOS2,
    "Kosmos2Model": _KOSMOS2,
    "KyutaiSpeechToTextForConditionalGeneration": _KYUTAI,
    "KyutaiSpeechToTextModel": _KYUTAI,
    "LongformerForMultipleChoice": {
        "input_ids": tokens()[:, None].repeat(1, 3, 1),
        "global_attention_mask": torch.ones(BATCH, 3, TOKENS).long(),
    },
    "LongformerForQuestionAnswering": {"input_ids": _separated},
    "MiniCPMOcrVisionModel": _MINICPM,
    "MiniCPMV4_7VisionModel": _MINICPM,
    "MllamaVisionModel": {"pixel_values": random(BATCH, 1, 4, 3, 64, 64)},
    "Molmo2ForConditionalGeneration": {"mm_token_type_ids": torch.zeros(BATCH, TOKENS).int()},
    "Molmo2Model": {"mm_token_type_ids": torch.zeros(BATCH, TOKENS).int()},
    "MuseGlimmerAssistantModel": {
        **{
            "noise_embeds": random(BATCH, 8, 64),
            "context_hidden_states": lambda sizes: random(BATCH, 12, 64 * len(sizes.value("target_layer_ids"))),
            "attention_mask": torch.ones(BATCH, 20).long(),
        },
    },
    "MuseSparkAudioModel": {"input_values": random(BATCH, 3840)},
    "MusicgenForConditionalGeneration": {"input_values": None, **_CODES},
    "MusicgenMelodyForConditionalGeneration": {"input_features": random(BATCH, 12, 12), **_CODES},
    "MusicgenMelodyModel": {"input_ids": _codes},
    "MusicgenModel": {"input_ids": _codes},
    "PerceiverForImageClassificationConvProcessing": _PERCEIVER,
    "PerceiverForImageClassificationFourier": _PERCEIVER,
    "NeuCodecModel": {
        **{"input_values": random(BATCH, 1, 6400), "input_features": lambda sizes: random(BATCH, 20, sizes.mel)},
    },
    "PerceiverForImageClassificationLearned": {
        **{"inputs": lambda sizes: random(BATCH, *sizes.image), "pixel_values": None},
    },
    "PI0ForConditionalGeneration": {
        **{"state": random(BATCH, 32), "noise": random(BATCH, 8, 32), "timestep": torch.tensor([0.3, 0.7])},
        **{
            "actions": random(BATCH, 8, 32),
            "input_ids": _prefix,
            "pixel_values": lambda sizes: random(BATCH, 1, *sizes.image),
        },
        **{"pixel_attention_mask": torch.ones(BATCH, 1).bool()},
    },
    "PI0Model": {
        **{
            "action_embeds": random(BATCH, 8, 64),
            "input_ids": _prefix,
            "pixel_values": lambda sizes: random(BATCH, 1, *sizes.image),
        },
        **{"pixel_attention_mask": torch.ones(BATCH, 1).bool(), "attention_mask": None},
    },
    "Pix2StructForConditionalGeneration": {
        "flattened_patches": lambda sizes: (
            random(BATCH, 16, sizes.number("patch_embed_hidden_size", default=768) + 2) + 1
        )
    },
    "PPOCRV5MobileRecForTextRecognition": {"pixel_values": random(BATCH, 3, 96, 320)},
    "Qwen3ASREncoder": {
        "input_features": random(BATCH, 128, 200),
        "input_features_mask": torch.ones(BATCH, 200).long(),
    },
    "Sam3LiteTextModel": _TEXT_AND_IMAGE,
    "Sam3LiteTextTextModel": {"input_ids": tokens()},
    "Sam3Model": _TEXT_AND_IMAGE,
    "SegGptModel": {"pixel_values": _tall, "prompt_pixel_values": _tall, "prompt_masks": _tall},
    "SpeechEncoderDecoderModel": {"input_features": None, "inputs": SOUND, "decoder_input_ids": tokens()},
    "SpeechT5ForSpeechToText": {"decoder_input_ids": tokens(below=81)},
    "SpeechT5ForTextToSpeech": _SPOKEN,
    "SpeechT5Model": {"input_values": random(BATCH, TOKENS, 64), "decoder_input_values": random(BATCH, TOKENS, 64)},
    "SplinterForPreTraining": {"input_ids": _asking},
    "UdopForConditionalGeneration": {
        "bbox": random(BATCH, TOKENS, 4),
        "pixel_values": None,
        "decoder_input_ids": tokens(),
    },
    "VideoMAEForPreTraining": {"bool_masked_pos": _masked_patches},
}


def fixed(model: Any) -> Guess:
    """What each call of the model is given."""
    sizes = Sizes(model.config)
    found: dict[str, Callable[[Sizes], Any] | Any] = GIVEN.get(type(model).__name__, {})
    return {name: value(sizes) if callable(value) else value for name, value in found.items()}
