"""How a model was seen to train, in this process: under autocast or outside of it.

Evaluation and generation compute as training did. A layer goes by how it was called itself (a model may switch autocast
off for some of its own), and where that is not known by how its model was. Records are plain dicts: deepcopy copies
them with the model, a pickle loads without this package, and Dynamo traces reads and writes of them with no graph break
and no recompilation (torch 2.13.0). A layer's holds its model's, and not the other way round: Dynamo follows a circle
of dicts for ever where it breaks a graph.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Iterable
from typing import Any

import torch

_RECORD = "_qlora_bf16_patch_trained"
# Which process a record was made in: a model that came by a pickle has lost its own forwards on the way.
_PROCESS = uuid.uuid4().hex
_came_by_pickle: set[str] = set()
_models: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_taken_in = 0


def share_record(model: torch.nn.Module, layers: Iterable[torch.nn.Module]) -> None:
    """Give a model, and those of its layers whose computing depends on it, their records."""
    global _taken_in
    layers = list(layers)
    theirs = [layer.__dict__.get(_RECORD) or {} for layer in layers]
    found = (own["model"] for own in theirs if "model" in own)
    # A module around a model that was seen to train shares the model's.
    record: Any = model.__dict__.get(_RECORD) or next(found, None)
    if record is None:
        record, _taken_in = {"autocast": None, "changes": 0}, _taken_in + 1
    model.__dict__[_RECORD] = record
    record["process"] = _PROCESS
    for layer in layers:
        own = layer.__dict__.get(_RECORD)
        if own is None or own.get("model") is not record:
            layer.__dict__[_RECORD] = {"autocast": None, "changes": 0, "process": _PROCESS, "model": record}
        else:
            own["process"] = _PROCESS
    _models.add(model)


def taken_in() -> int:
    """How many models were given a record in this process, those that are gone included."""
    return _taken_in


def models() -> list[torch.nn.Module]:
    """Those that have a record."""
    return list(_models)


def is_taken_in(module: torch.nn.Module) -> bool:
    """Whether a model, or a copy of one, has a record that was made in this process."""
    record: Any = module.__dict__.get(_RECORD)
    return record is not None and "model" not in record and record["process"] == _PROCESS


def see(module: torch.nn.Module, autocast: bool) -> None:
    """A call of ``module``: if it is a training step's, its way is remembered; the last one counts.

    A call without gradients never is, whatever its arguments require: it may be an evaluation, or the old policy's
    pass. A reentrant checkpoint's first forward has none, and its recomputation in the backward is remembered.

    Args:
        module: a model, or a layer that shares its record.
        autocast: whether autocast is on.
    """
    record: Any = module.__dict__.get(_RECORD)
    if record is None or not (module.training and torch.is_grad_enabled()):
        return
    autocast = autocast or torch.is_autocast_enabled()  # a layer on the CPU inside CUDA autocast
    if "model" in record:
        # No write where it tells nothing new: Dynamo breaks its graph at a checkpoint that has one inside (torch
        # 2.13.0, "HOP: Unsafe side effect"), and what is run again then draws another dropout.
        if _way(record) == autocast:
            return
        record["changes"] = record["model"]["changes"]
    elif not torch.compiler.is_compiling() and record["autocast"] != autocast:
        record["changes"] += 1  # what its layers were called in before counts no more
    record["autocast"] = autocast


def computes_as_upstream(layer: torch.nn.Module, autocast: bool) -> bool:
    """Whether a call of ``layer`` is left to upstream: it has gradients, runs under autocast, or equals such a one.

    In training mode a call without gradients equals one with gradients, until the layer was seen to train under
    autocast: an old policy's pass before the first step, a reentrant checkpoint's first forward.

    Args:
        layer: an adapter's layer.
        autocast: whether autocast is on for its input's device.
    """
    record: Any = layer.__dict__.get(_RECORD)
    if record is not None and record["process"] != _PROCESS:
        _came_by_pickle.add(type(layer).__name__)
    see(layer, autocast)
    if autocast or torch.is_grad_enabled():
        return True
    trained = None if record is None else _way(record)
    return layer.training if trained is None else not trained


def _way(record: dict[str, Any]) -> bool | None:
    """Whether under autocast: a layer's own way, else its model's."""
    model, own = record.get("model", record), record["autocast"]
    found: bool | None = own if own is not None and record["changes"] == model["changes"] else model["autocast"]
    return found


def seen() -> list[str]:
    """A sentence for each model that was seen to train, and for those of which nothing is known."""
    told = [
        f"{name} layers of a model that came by a pickle are at work: what is not quantized in it is not mended before "
        "qlora_bf16_patch.guard(model)"
        for name in sorted(_came_by_pickle)
    ]
    for model in models():
        autocast = model.__dict__[_RECORD]["autocast"]
        if autocast is not None:
            where = "under autocast" if autocast else "outside of autocast"
            name = type(model).__name__
            told.append(f"{name} was seen to train {where}: its adapted layers evaluate and generate as they trained")
    return told
