"""Finds the architectures of the installed transformers and builds a toy of each from its own configuration class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

from .toys import NEEDED, OPTIONS, PERCEIVING, SIZES, VOCABULARY

_COUNTED = ("hidden_layers", "attention_heads")


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
        if self.task == "SEQ_CLS":
            config.num_labels = 16  # the largest of two logits is no measure of a rounding
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
    """A small configuration: sizes by `SIZES`, then ``wanted`` where it has the attribute, then ``options``."""
    options = OPTIONS.get(config_class.__name__, {}) | options
    default = config_class()
    nested = {name: type(part) for name in default.sub_configs if (part := getattr(default, name, None)) is not None}
    small: dict[str, Any] = {name: shrunk(kind, {}, options.get(name, {})) for name, kind in nested.items()}
    sizes = {name: value for name, value in default.to_dict().items() if name not in nested}
    layers, heads = (sizes.get(default.attribute_map.get(f"num_{name}", f"num_{name}")) for name in _COUNTED)
    for name, value in sizes.items():
        if isinstance(value, list) and value and len(value) == layers:
            small[name] = (list(dict.fromkeys(value)) * 2)[:2]  # one layer of each of two kinds
        elif isinstance(value, int) and not isinstance(value, bool):
            # As many key and value heads as attention heads stay as many.
            rule = "num_attention_heads" if (name, value) == ("num_key_value_heads", heads) else name
            if (smaller := _smaller(rule, value)) != value:
                small[name] = smaller
        elif name in wanted or (value is None and name in NEEDED):
            small[name] = wanted[name] if name in wanted else NEEDED[name]
    return config_class(**{**small, **{name: value for name, value in options.items() if name not in nested}})


def _smaller(name: str, value: int) -> int:
    if re.fullmatch(r".*token_(id|index)", name):
        return value if value < VOCABULARY else 200 + value % 100
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


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
