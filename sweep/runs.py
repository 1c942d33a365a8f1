"""Runs a toy: training steps and generation, in and out of autocast, with and without the patches."""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from toys import devices  # isort: skip  # before torch

import qlora_bf16_patch  # isort: skip  # before the libraries that it patches

import torch
import transformers
from bitsandbytes.nn import Linear4bit
from torch.utils._pytree import tree_map

from qlora_bf16_patch.numerics.dtypes import floating
from toys import cpu  # noqa: F401

from . import diffusion, hub, outputs, recipes
from .architectures import Architecture, architectures
from .results import ROUNDING, Run, planned

# What torch says when dtypes do not fit. "Byte" is the storage of a 4-bit weight.
MISMATCH = re.compile(
    r"same dtype|should be the same|scalar type|mixed dtype|without overflow|dtypes? (to )?match|to match query dtype"
    r"|storage dtype|Byte|uint8|(can't|cannot) be cast to the desired"
    r"|dtypes? to be equal|dtype mismatch|different dtypes?|expected dtype|does not match weight dtype|type promoting"
    r"|needs_dynamic_casting"  # an assertion of torch's own, in batch norms and samplings
    r"|but got:? \S*(float|bfloat16|half)|but found (Float|BFloat16)",
    re.IGNORECASE,
)
TOYS = {toy.name: toy for toy in [*architectures(), *diffusion.toys(), *hub.toys()]}


def outcomes(name: str, recipe: str, sides: Iterable[bool]) -> Iterator[Run]:
    """Runs what is planned for one architecture and recipe; every failure is an outcome."""
    sides = list(sides)
    toy, expected, rounding, model, unpatched, truncated = TOYS[name], None, None, None, None, False
    try:
        with contextlib.nullcontext() if True in sides else qlora_bf16_patch.disabled():
            model = recipes.prepared(toy, checkpoint(name), recipe)
    except Exception as error:
        failure = error
    agrees = model is not None and recipe == "adapters16" and agreeing(toy, model)
    for run in planned(name, recipe, sides):
        if model is None:
            yield failed(run, failure, "not built: ")
            continue
        try:
            with contextlib.nullcontext() if run.patched else qlora_bf16_patch.disabled():
                values = (generate if run.mode == "generate" else train)(toy, copy.deepcopy(model), run.autocast)
        except Exception as error:
            unpatched = None if not run.patched else unpatched
            yield failed(run, error)
            continue
        if not run.patched:
            unpatched = None if truncated else values
        elif unpatched is not None:
            run = dataclasses.replace(run, same=identical(values, unpatched), agreeing=agrees)
        if run.mode == "train":
            yield run
            continue
        logits = values
        if run.patched and expected is None:
            expected, rounding = reference(toy, model)
        if run.autocast and not run.patched:
            expected = logits
            if truncated := truncates(toy, model):
                unpatched = None
                run = dataclasses.replace(run, outcome="mismatch", message="activations were truncated to bytes")
                expected = generate(toy, recipes.dequantized(copy.deepcopy(model)), autocast=True)
        distance = apart(logits, expected)
        if run.patched and rounding is None and (distance or 0) > ROUNDING:
            _, rounding = reference(toy, model)
        run = dataclasses.replace(run, rounding=rounding if run.patched else None)
        yield dataclasses.replace(run, dtype=str(logits.dtype), apart=distance)


_FOLDER = contextlib.ExitStack()
atexit.register(_FOLDER.close)


@lru_cache(maxsize=1)
def checkpoint(name: str) -> Path:
    _FOLDER.close()  # the one before
    folder = Path(_FOLDER.enter_context(tempfile.TemporaryDirectory()))
    recipes.save(TOYS[name], folder)
    return folder


def train(toy: Architecture, model: Any, autocast: bool) -> torch.Tensor:
    """Two optimizer steps; returns their losses."""
    transformers.set_seed(0)
    losses = []
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        with devices.default(), torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
            loss = outputs.loss(model(**on_device(toy.inputs()), **on_device(toy.targets())))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def generate(toy: Architecture, model: Any, autocast: bool) -> torch.Tensor:
    """Evaluates, and generates where the model can; returns the evaluation's logits, (batch, tokens, vocabulary)."""
    transformers.set_seed(0)
    model.eval()
    with devices.default(), torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
        logits = outputs.logits(model(**on_device(toy.inputs()), **on_device(toy.decoder_inputs())))
        if toy.generates:
            model.generate(**on_device(toy.inputs()), max_new_tokens=3, do_sample=False, pad_token_id=0)
    return logits


def on_device(inputs: dict[str, Any]) -> Any:
    return tree_map(lambda value: value.to(devices.TYPE) if isinstance(value, torch.Tensor) else value, inputs)


def reference(toy: Architecture, model: Any) -> tuple[torch.Tensor | None, float | None]:
    """The logits of the same weights in float32 layers, and how far autocast takes them from there.

    None where such a model does not run.
    """
    try:
        with qlora_bf16_patch.disabled():
            model = recipes.dequantized(copy.deepcopy(model)).float()
            expected = generate(toy, copy.deepcopy(model), autocast=False)
            return expected, apart(generate(toy, model, autocast=True), expected)
    except Exception:
        return None, None


def truncates(toy: Architecture, model: Any) -> bool:
    """Whether a 4-bit layer is given integers without the patches: they are cast to its storage's dtype."""
    given = []
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.register_forward_pre_hook(lambda _, args: given.append(args[0].dtype))
    with qlora_bf16_patch.disabled():
        generate(toy, model, autocast=True)
    return any(not dtype.is_floating_point for dtype in given)


def agreeing(toy: Architecture, model: Any) -> bool:
    """Whether, without the patches and outside autocast, each module is given the dtype that it holds, bfloat16."""
    model = copy.deepcopy(model)
    given = [parameter.dtype for parameter in model.parameters()]
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _, args: given.extend(value.dtype for value in floating(args)))
    try:
        with qlora_bf16_patch.disabled():
            generate(toy, model, autocast=False)
    except Exception:
        return False
    return {dtype for dtype in given if dtype.is_floating_point} == {torch.bfloat16}


def identical(values: torch.Tensor, others: torch.Tensor) -> bool:
    return values.dtype == others.dtype and torch.equal(values.nan_to_num(), others.nan_to_num())


def apart(logits: torch.Tensor, expected: torch.Tensor | None) -> float | None:
    """The largest difference at a token in the middle of all, as a share of the largest logit.

    In the middle, since a rounding sends a token to another expert now and then, which is no rounding's size apart.
    """
    if expected is None or logits.shape != expected.shape:
        return None
    differences = (logits.double() - expected.double()).abs().amax(-1).flatten()
    return float(f"{(differences.nanquantile(0.5) / expected.double().abs().max()).item():.3g}")


def failed(run: Run, error: Exception, prefix: str = "") -> Run:
    frames = [
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno} {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)[-4:]
    ]
    message = " ".join(str(error).split())[:200]
    outcome = (
        "mismatch" if isinstance(error, (RuntimeError, TypeError, ValueError)) and MISMATCH.search(message) else "error"
    )
    message = f"{prefix}{type(error).__name__}: {message}"
    return dataclasses.replace(run, outcome=outcome, message=message, frames=tuple(frames))


def quiet() -> None:
    """Third parties' chatter about toys says nothing; a warning of this package's own is an error."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module="qlora_bf16_patch")
