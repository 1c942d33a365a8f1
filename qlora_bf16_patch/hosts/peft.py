"""PEFT's tuner layers: which they are, and what they read of their base layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..numerics.overlay import overlay
from .bitsandbytes import is_kbit, unwrapped, with_writable


def is_kbit_tuner(module: Any) -> bool:
    """Whether it is an adapter's layer around a 4- or 8-bit layer."""
    return issubclass(type(module), BaseTunerLayer) and is_kbit(unwrapped(module.get_base_layer()))


def is_kbit_layer(module: Any) -> bool:
    """Whether it is a 4- or 8-bit layer, or an adapter's layer around one."""
    return is_kbit(module) or is_kbit_tuner(module)


def is_prompt_learning(model: Any) -> bool:
    """Whether it is a PEFT model of prompt, prefix or p-tuning: no layer of it holds an adapter."""
    return any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values())


def with_writable_base(layer: Any, x: torch.Tensor) -> Any:
    """The tuner layer over a base layer that upstream's forward may write to, so that it reads what it has written.

    Some methods take the base layer's bias off its result again (DoRA, BOFT, DEFT; peft 0.21.2), in the dtype that
    bitsandbytes has written to it; some dequantize the weight in the dtype of its quant state.
    """
    base = layer._modules["base_layer"]
    writable = with_writable(base, x) if is_kbit(base) else base
    return layer if writable is base else overlay(layer, _modules={**layer._modules, "base_layer": writable})


def adapter_parameters(model: Any) -> Iterator[torch.nn.Parameter]:
    """The parameters of a model's adapters, whatever their method; those of ``modules_to_save`` are none."""
    for module in model.modules():
        if issubclass(type(module), BaseTunerLayer):
            for name in module.adapter_layer_names:
                part = module._modules.get(name) or module._parameters.get(name)
                if part is not None:
                    yield from part.parameters() if isinstance(part, torch.nn.Module) else (part,)
        elif hasattr(module, "peft_config") and is_prompt_learning(module):
            yield from module.prompt_encoder.parameters()


def adapter_dtypes(layer: Any) -> set[torch.dtype]:
    """Dtypes of the floating parameters and buffers of a tuner layer's adapters."""
    found = set()
    for name in layer.adapter_layer_names:
        container = layer._modules.get(name)
        for outer in (container, *container._modules.values()) if container is not None else ():
            for holder in (outer, *outer._modules.values()) if outer is not None else ():  # an engine may wrap them
                for value in () if holder is None else (*holder._parameters.values(), *holder._buffers.values()):
                    if value is not None and value.is_floating_point():
                        found.add(value.dtype)
    return found


def active_dtypes(layer: Any) -> set[torch.dtype]:
    """Dtypes of the floating parameters and buffers of those adapters of a tuner layer that take part in a call."""
    found: set[torch.dtype] = set()
    if layer.disable_adapters or layer.merged:
        return found
    for container in filter(None, map(layer._modules.get, layer.adapter_layer_names)):
        for adapter in layer.active_adapters:
            for held in (container._modules, container._parameters, container._buffers):
                value = held.get(adapter)
                tensors = (*value.parameters(), *value.buffers()) if isinstance(value, torch.nn.Module) else (value,)
                found |= {tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()}
    return found
