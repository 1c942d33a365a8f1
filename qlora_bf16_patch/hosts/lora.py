"""What a LoRA layer of PEFT is made of. Import it once ``peft.tuners.lora`` is there."""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn.modules import linear as torch_linear
from torch.nn.modules import module as torch_module

from .bitsandbytes import kbit_classes

Adapter = tuple[Any, Any, Any, Any, float]
"""Weight and bias of A, weight and bias of B, the scaling."""

# What a LoRA layer holds in the releases that were read (peft 0.16 to 0.21.2, tuners/lora/layer.py). A name beside
# these is a part of the computation that our own path would leave out.
_LAYERS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
_OTHERS = {"r", "lora_alpha", "scaling", "lora_dropout", "use_dora", "use_rslora", "lora_bias"}
_NAMES, _OTHER_NAMES = LoraLayer.adapter_layer_names, LoraLayer.other_param_names
_IS_KNOWN = _LAYERS.issuperset(_NAMES) and _OTHERS.issuperset(_OTHER_NAMES)

_KBIT = kbit_classes()  # PEFT has imported bitsandbytes for its own layers

# torch's own forward and call; None where another party had put its own in their place before this was imported.
_FORWARD = nn.Linear.forward if nn.Linear.forward.__globals__ is vars(torch_linear) else None
_CALL = nn.Module.__call__ if nn.Module.__call__.__globals__ is vars(torch_module) else None
_HOOKS = tuple(value for name, value in vars(torch_module).items() if name.startswith("_global_") and "hooks" in name)


def plain_adapters(layer: Any, x: torch.Tensor) -> list[Adapter] | None:
    """The active adapters of a LoRA layer; None where they do more than add up, or another party is to be called.

    That is: PEFT before 0.16 (variants were told by other attributes), a merge, adapters switched off, a variant such
    as DoRA, dropout, casts that the user has switched off, an adapter that is hooked, sharded, offloaded or of another
    class, somebody's own ``nn.Linear.forward``, a layout that was never looked at.
    """
    # The hot path reads `__dict__` and `_modules`: nn.Module.__getattr__ costs as much as a small operation.
    own, modules = layer.__dict__, layer._modules
    if own.get("_disable_adapters", True) or own.get("merged_adapters", True) or x.dim() < 2 or not x.numel():
        return None
    if not own.get("cast_input_dtype_enabled") or "lora_variant" not in own:
        return None
    cls = type(layer)
    if not _IS_KNOWN or cls.adapter_layer_names != _NAMES or cls.other_param_names != _OTHER_NAMES:
        return None
    if nn.Linear.forward is not _FORWARD or nn.Module.__call__ is not _CALL or any(_HOOKS):
        return None
    all_a, all_b = modules["lora_A"]._modules, modules["lora_B"]._modules
    dropouts, variants, device = modules["lora_dropout"]._modules, own["lora_variant"], x.device
    found: list[Adapter] = []
    for name in layer.active_adapters:
        if name not in all_a:
            continue
        dropout = dropouts[name]
        a, b = _plain_weight(all_a[name]), _plain_weight(all_b[name])
        if a is None or b is None or a.device != device or b.device != device or name in variants:
            return None
        if type(dropout) is not nn.Identity and (type(dropout) is not nn.Dropout or dropout.training):
            return None
        if dropout._forward_hooks or dropout._forward_pre_hooks:
            return None
        found.append((a, all_a[name]._parameters["bias"], b, all_b[name]._parameters["bias"], own["scaling"][name]))
    return found


def base_is_plain(base: Any) -> bool:
    """Whether calling a LoRA layer's base layer runs the k-bit layer's forward and nothing beside."""
    own = base.__dict__
    return not (own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own) and type(base) in _KBIT


def is_upstreams(forward: Any) -> bool:
    """Whether a k-bit LoRA layer's forward is PEFT's own function, and not another library's wrapper of it."""
    return type(forward) is types.FunctionType and forward.__globals__["__name__"] == "peft.tuners.lora.bnb"


def is_dora(layer: Any) -> bool:
    """Whether a LoRA layer has a magnitude to its directions."""
    vectors = layer._modules.get("lora_magnitude_vector")
    return vectors is not None and len(vectors) > 0  # Dynamo cannot trace its truth on torch 2.8


def _plain_weight(adapter: Any) -> Any:
    """The weight, if calling the module would do nothing but ``F.linear``: unhooked, unwrapped, not sharded."""
    own = adapter.__dict__
    if (
        type(adapter) is not nn.Linear
        or "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    ):
        return None
    weight = own["_parameters"].get("weight")
    return weight if type(weight) is nn.Parameter else None
