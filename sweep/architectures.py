"""Finds the architectures of the installed transformers and builds a toy of each from its own configuration class."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import transformers

from toys import devices

from .families import LANGUAGE, classes
from .probing import OutOfReach, Probe, probed
from .shrinking import shrunk
from .sizes import PERCEIVING, UNCHECKPOINTED


class Architecture:
    """A model class of transformers.

    Attributes:
        task: PEFT's name for it, SPEECH for what generates from sounds, or None.
    """

    def __init__(self, name: str, family: str, task: str | None) -> None:
        self.name = name
        self.family = family
        self.task = task

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.name)

    @property
    def probe(self) -> Probe:
        """A configuration with which the model runs, and what it is given."""
        if isinstance(self._probe, OutOfReach):
            raise self._probe
        return self._probe

    @cached_property
    def _probe(self) -> Probe | OutOfReach:
        try:
            return probed(self.model_class, {"num_labels": 16} if self.task == "TOKEN_CLS" else {})
        except OutOfReach as error:
            return error

    @property
    def config(self) -> Any:
        """A toy's configuration."""
        return self.probe.config

    @property
    def generates(self) -> bool:
        """Whether an evaluation calls ``generate``, too."""
        return self.probe.generates

    @property
    def checkpoints(self) -> bool:
        """Whether its training can run with gradient checkpointing."""
        return self.probe.checkpoints and self.config.model_type not in UNCHECKPOINTED

    @property
    def kept(self) -> list[str]:
        """Names of linear layers that can't be in 4 bits, beside those that transformers leaves out."""
        return self.probe.kept

    def inputs(self) -> dict[str, Any]:
        """What the model is given, beside its labels: sequences of tokens, images or sounds, or several of them."""
        return cloned(self.probe.inputs)

    def decoder_inputs(self) -> dict[str, Any]:
        """What an evaluation needs beside `inputs`."""
        return cloned(self.probe.decoder_inputs)

    def targets(self) -> dict[str, Any]:
        """What a training step needs beside `inputs`."""
        return cloned(self.probe.targets)


class Language(Architecture):
    """One that generates tokens, or classifies sequences of them."""

    generates = property(lambda self: self.task != "SEQ_CLS")
    checkpoints = property(lambda self: self.model_class.supports_gradient_checkpointing)
    kept = property(lambda _: [])

    @cached_property
    def config(self) -> Any:
        """As of any; a left out start token of an encoder-decoder is 0."""
        wanted = {"is_decoder": True} if self.task == "CAUSAL_LM" else {}
        config = shrunk(self.model_class.config_class, wanted, {})
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = 0
        if self.task == "SEQ_CLS":
            config.num_labels = 16  # the largest of two logits is no measure of a rounding
        return config

    def tokens(self) -> torch.Tensor:
        """Ids of two sequences of 12 tokens, int64."""
        ids = torch.randint(5, 100, (2, 12), generator=devices.generator(0))
        if self.task == "SEQ_CLS":  # the head of BART and T5 reads the end's hidden state
            end = getattr(self.config, "eos_token_id", None)
            ids[:, -1] = end if isinstance(end, int) else 1
        return ids

    def inputs(self) -> dict[str, Any]:
        """`tokens` with a mask that leaves out the second sequence's first two, and images or sounds."""
        ids = self.tokens()
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        return PERCEIVING[self.name](self.config, inputs) if self.name in PERCEIVING else inputs

    def decoder_inputs(self) -> dict[str, Any]:
        return {"decoder_input_ids": self.tokens()} if self.task in ("SEQ_2_SEQ_LM", "SPEECH") else {}

    def targets(self) -> dict[str, Any]:
        return {"labels": torch.tensor([0, 1]) if self.task == "SEQ_CLS" else self.tokens()}


def cloned(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same, which a forward may write to."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def architectures() -> list[Architecture]:
    """Every architecture: by family in their order, then by class name."""
    found: dict[str, Architecture] = {
        name: Language(name, LANGUAGE, "SPEECH" if name.startswith("Whisper") else "CAUSAL_LM") for name in PERCEIVING
    }
    for name, family, task in classes():
        found.setdefault(name, (Language if family == LANGUAGE else Architecture)(name, family, task))
    families = list(dict.fromkeys(one.family for one in found.values()))
    return sorted(found.values(), key=lambda one: (families.index(one.family), one.name))
