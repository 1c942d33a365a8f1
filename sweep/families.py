"""Which model classes of the installed transformers belong together, from the tables of its auto classes."""

from __future__ import annotations

from collections.abc import Iterator

from transformers.models.auto import modeling_auto

LANGUAGE = "language"
# By family, tables of `modeling_auto` (``MODEL_FOR_<name>_MAPPING_NAMES``) in the order in which a class is looked for,
# each with PEFT's name for the task where it has one that takes what such a class takes. Unnamed tables are "other".
FAMILIES: dict[str, dict[str, str | None]] = {
    LANGUAGE: {"CAUSAL_LM": "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM": "SEQ_2_SEQ_LM", "SEQUENCE_CLASSIFICATION": "SEQ_CLS"},
    "masked": dict.fromkeys(["MASKED_LM", "NEXT_SENTENCE_PREDICTION"]),
    "answers": {"QUESTION_ANSWERING": "QUESTION_ANS", "TABLE_QUESTION_ANSWERING": None, "MULTIPLE_CHOICE": None},
    "tokens": {"TOKEN_CLASSIFICATION": "TOKEN_CLS"},
    "vision": dict.fromkeys(
        [
            *("IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "INSTANCE_SEGMENTATION"),
            *("UNIVERSAL_SEGMENTATION", "IMAGE_SEGMENTATION", "DEPTH_ESTIMATION", "MASKED_IMAGE_MODELING"),
            *("KEYPOINT_DETECTION", "KEYPOINT_MATCHING", "POSE_ESTIMATION", "MASK_GENERATION", "IMAGE_TO_IMAGE"),
            *("NORMAL_ESTIMATION", "POINTMAP_ESTIMATION", "IMAGE_MATTING", "CAUSAL_IMAGE_MODELING", "BACKBONE"),
            *("TEXT_RECOGNITION", "TABLE_RECOGNITION", "IMAGE"),
        ]
    ),
    "speech": dict.fromkeys(
        ["CTC", "SPEECH_SEQ_2_SEQ", "RNNT", "TDT", "TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM"],
    ),
    "audio": dict.fromkeys(["AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"]),
    "video": {"VIDEO_CLASSIFICATION": None},
    "image-text": dict.fromkeys(
        [
            *("IMAGE_TEXT_TO_TEXT", "VISUAL_QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING", "MULTIMODAL_LM"),
            *("ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION", "RETRIEVAL"),
        ]
    ),
    "time-series": dict.fromkeys(
        ["TIME_SERIES_CLASSIFICATION", "TIME_SERIES_PREDICTION", "TIME_SERIES_REGRESSION"],
    ),
    "pretraining": {"PRETRAINING": None},
    "bare": dict.fromkeys(["TEXT_ENCODING", ""]),
    "other": {},
}


# Classes that no table names.
UNLISTED = {
    "time-series": [
        *("PatchTSTForPrediction", "PatchTSTForPretraining", "PatchTSMixerForPrediction", "PatchTSMixerForPretraining"),
        *("InformerForPrediction", "AutoformerForPrediction", "TimeSeriesTransformerForPrediction"),
    ]
}


def classes() -> Iterator[tuple[str, str, str | None]]:
    """Names of model classes, each once, with family and PEFT's name for the task."""
    tables = {_short(name): names for name, names in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")}
    tables = {short: names for short, names in tables.items() if short is not None}
    named = [(family, table, task) for family, some in FAMILIES.items() for table, task in some.items()]
    unnamed = [("other", table, None) for table in tables if all(table != one for _, one, _ in named)]
    seen: set[str] = set()
    for family, table, task in named + unnamed:
        for value in tables.get(table, {}).values():
            for name in value if isinstance(value, (tuple, list)) else (value,):
                if name not in seen:
                    seen.add(name)
                    yield name, family, task
    yield from ((name, family, None) for family, names in UNLISTED.items() for name in names if name not in seen)


def _short(name: str) -> str | None:
    if name == "MODEL_MAPPING_NAMES":
        return ""
    return name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES") if name.startswith("MODEL_FOR_") else None
