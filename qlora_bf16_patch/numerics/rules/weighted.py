"""Layers: what torch computes with weights in one call, in which no function mode sees the products."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, floating
from .rule import (
    Args,
    Kwargs,
    Rule,
    activations,
    device_of,
    first_operand,
    found,
    mixed,
    mixed_outside_autocast,
    operand,
    promoted_on_gpus,
)

_F = nn.functional
_STATISTICS = ("running_mean", "running_var")


def _norm(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """On CPU a normalization takes half precision with float32 for all the rest, on CUDA batch norm alone does.

    Autocast casts the other ones there, and an instance norm's mean may have any dtype (torch 2.13.0).
    """
    if func is _F.instance_norm:
        args, kwargs = [*args[:1], *args[2:]], {name: kwargs[name] for name in kwargs if name != "running_mean"}
    if not mixed(func, args, kwargs):
        return False
    x, *others = floating((*args, *kwargs.values()))
    if x.device.type != "cpu" and func in (_F.layer_norm, _F.group_norm):  # pragma: no cover: on a GPU
        return not autocast_is_on(x.device.type)
    return x.dtype not in HALF or any(other.dtype != torch.float32 for other in others)


def _of_classes(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Targets that are probabilities are multiplied with the weights, which promotes."""
    target = operand(args, kwargs, 1, "target")
    return not target.is_floating_point() and mixed_outside_autocast(func, args, kwargs)


def _sampled(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """The CPU's autocast computes in float32, and CUDA's promotes (torch 2.13.0, ATen/autocast_mode.h)."""
    on_cpu = device_of(args, kwargs) == "cpu"
    return mixed_outside_autocast(func, args, kwargs) if on_cpu else promoted_on_gpus(func, args, kwargs)


def _updated(
    first: int, flag: str, default: bool, args: Args, kwargs: Kwargs
) -> Sequence[tuple[int | str, torch.Tensor]]:
    """The running statistics, whose first one stands there: they are updated in their own dtype.

    It may be another than the weights': PEFT's preparation casts parameters and leaves buffers.
    """
    if not (args[5] if len(args) > 5 else kwargs.get(flag, default)):
        return ()
    places = [at if len(args) > at else name for at, name in enumerate(_STATISTICS, first)]
    tensors = [args[at] if isinstance(at, int) else kwargs.get(at) for at in places]
    return [(at, tensor) for at, tensor in zip(places, tensors, strict=True) if tensor is not None]


_CONVOLUTIONS = (f"{name}{n}d" for n in (1, 2, 3) for name in ("conv", "conv_transpose"))
_RECURRENT = [f"{name}{cell}" for name in ("rnn_tanh", "rnn_relu", "lstm", "gru") for cell in ("", "_cell")]
_FUSED = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "linear_cross_entropy")
_in_layer = functools.partial(_updated, 1)
# Torch's own, of another order; the last one has no flag, and always updates.
_IN_C = ("batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")
RULES: dict[Any, Rule] = {
    **dict.fromkeys(found("prelu", *_CONVOLUTIONS), Rule(mixed_outside_autocast, activations)),
    **dict.fromkeys((_F.layer_norm, _F.group_norm), Rule(_norm)),
    _F.batch_norm: Rule(_norm, written=functools.partial(_in_layer, "training", False)),
    _F.instance_norm: Rule(_norm, written=functools.partial(_in_layer, "use_input_stats", True)),
    **dict.fromkeys(
        (getattr(torch, name) for name in _IN_C if hasattr(torch, name)),
        Rule(_norm, written=functools.partial(_updated, 3, "training", True)),
    ),
    **dict.fromkeys(found(*_RECURRENT, *_FUSED), Rule(dtypes=activations)),
    **dict.fromkeys(found("grid_sample", "grid_sampler"), Rule(_sampled)),
    **dict.fromkeys((_F.cross_entropy, _F.nll_loss), Rule(_of_classes)),
    _F.embedding_bag: Rule(mixed, first_operand),  # a table is not copied to float32 for the weights of some rows
}
