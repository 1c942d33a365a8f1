"""Finds out with what a model runs: in float32, without 4-bit layers and without the patches."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers.quantizers.base import get_keys_to_not_convert

from . import outputs
from .given import fixed
from .inputs import TOKENS, Guess, guesses, targets, tokens, with_placeholders
from .options import LEFT_OUT, OF_MODEL
from .shrinking import shrunk

_LARGEST = 60_000_000
_NO_EMBEDDING = torch.nn.Module()


class OutOfReach(Exception):
    """No toy can be built of this class."""


@dataclass(frozen=True)
class Probe:
    """A configuration with which a model runs, and what it is given; see `Architecture`."""

    config: Any
    inputs: Guess
    decoder_inputs: Guess
    targets: Guess
    generates: bool
    checkpoints: bool
    kept: list[str]


def probed(model_class: Any, wanted: dict[str, Any]) -> Probe:
    """The first of some configurations and inputs with which the model runs.

    Args:
        model_class: of transformers.
        wanted: attributes that the configuration gets where it has them.

    Raises:
        OutOfReach: there is none; with the first reason.
    """
    if getattr(model_class, "forward", None) is torch.nn.Module.forward:
        raise OutOfReach("it has no forward of its own")
    if (name := getattr(model_class, "__name__", "")) in LEFT_OUT:
        raise OutOfReach(LEFT_OUT[name])
    reasons = []
    for mild in (False, True):
        try:
            config = shrunk(model_class.config_class, {}, OF_MODEL.get(name, {}), mild=mild)
            for attribute, value in wanted.items():
                setattr(config, attribute, value)
            if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", 0) is None:
                config.decoder_start_token_id = 0
            if (size := _size(model_class, config)) > _LARGEST:
                raise OutOfReach(f"{size:.0e} parameters when shrunk")
            torch.manual_seed(0)
            return _with_inputs(_answering(model_class(config)).eval())
        except Exception as error:  # whatever a configuration or a model raises, the sweep goes on
            reasons.append(f"{type(error).__name__}: {error}" if not isinstance(error, OutOfReach) else str(error))
    raise OutOfReach(reasons[0])


def _answering(model: Any) -> Any:
    """The model; its class answers PEFT, which asks a detector for its embedding, too (0.21.2, tuners_utils.py)."""
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        type(model).get_input_embeddings = lambda _: _NO_EMBEDDING
    return model


def _size(model_class: Any, config: Any) -> int:
    """The number of parameters; 0 where a model can't be made without memory."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    except Exception:
        return 0


def _with_inputs(model: Any) -> Probe:
    described = inspect.signature(model.forward).parameters.values()
    parameters = {
        one.name: one.default is one.empty for one in described if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
    called, failures = watch(model), []
    for encoded in guesses(model.config, model.main_input_name, parameters, fixed(model)):
        decoded = "decoder_input_ids" in parameters and "decoder_input_ids" not in encoded
        for guess in (encoded, encoded | {"decoder_input_ids": tokens()})[: 1 + decoded]:
            try:
                given = _evaluated(model, guess, parameters)
            except Exception as error:
                failures.append(error)
                continue
            decoder = {name: given.pop(name) for name in ("decoder_input_ids",) if name in given}
            generates = _generates(model, given)
            decoder, target = _trained(model, given, decoder, parameters)
            checkpoints = _checkpoints(model, given | target)
            return Probe(model.config, given, decoder, target, generates, checkpoints, _kept(model, called))
    raise failures[0]


def _evaluated(model: Any, guess: Guess, parameters: dict[str, bool]) -> Guess:
    """The guess, with as many placeholders as the model says that it needs."""
    for _ in range(3):
        try:
            with torch.no_grad():
                outputs.logits(model(**guess))
            return guess
        except (ValueError, RuntimeError) as error:
            found = re.search(r"(Image|Video|Audio).*features:? (\d+)", str(error))
            if not found or "input_ids" not in guess:
                raise
            guess = with_placeholders(guess, model.config, found[1].lower(), int(found[2]), parameters)
    raise ValueError(f"no number of placeholders fits {TOKENS} tokens")


def _trained(model: Any, given: Guess, decoder: Guess, parameters: dict[str, bool]) -> tuple[Guess, Guess]:
    """What evaluation and training are given beside the inputs."""
    model.train()
    for labels in targets(model.config, parameters, given):
        for target in (labels, decoder | labels)[not labels :]:
            try:
                found = model(**given, **target)
                if target and getattr(found, "loss", None) is None:
                    continue
                outputs.loss(found).backward()  # type: ignore[no-untyped-call]
                return decoder, target
            except Exception:
                continue
    return decoder, decoder  # its training fails, and says why


def _checkpoints(model: Any, given: Guess) -> bool:
    """Whether it trains with the checkpointing that ``prepare_model_for_kbit_training`` switches on."""
    model.requires_grad_(False)  # as the weights in 4 bits
    try:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        outputs.loss(model(**given)).backward()  # type: ignore[no-untyped-call]
    except Exception:
        return False
    return True


def _kept(model: Any, called: set[str]) -> list[str]:
    """Names of linear layers that can't be in 4 bits; none stands for those that transformers leaves out anyway.

    Another module multiplies with their weight: torch's multi-head attention (torch/nn/modules/activation.py), the
    time delay layers of Wav2Vec2ForXVector.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    uncalled = [name for name in layers if name not in called]
    return uncalled + get_keys_to_not_convert(model) if uncalled else []


def watch(model: Any) -> set[str]:
    """Names of the modules whose forward was called, from now on."""
    called: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    return called


def _generates(model: Any, given: Guess) -> bool:
    if not getattr(model, "can_generate", lambda: False)():
        return False
    try:
        model.eval().generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0)
    except Exception:
        return False
    return True
