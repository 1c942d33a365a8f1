"""PEFT's tuner layers: which they are, and what they read of their base layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..numerics.autocast import NOTHING
from ..numerics.dtypes import autocast_is_on
from .as_written import AsWritten
from .bitsandbytes import bias_of, compute_dtype, is_4bit, is_kbit, overwrites_quant_state, unwrapped


def is_kbit_tuner(module: Any) -> bool:
    """Whether it is an adapter's layer around a 4- or 8-bit layer."""
    return issubclass(type(module), BaseTunerLayer) and is_kbit(unwrapped(module.get_base_layer()))


def is_kbit_layer(module: Any) -> bool:
    """Whether it is a 4- or 8-bit layer, or an adapter's layer around one."""
    return is_kbit(module) or is_kbit_tuner(module)


def is_prompt_learning(model: Any) -> bool:
    """Whether it is a PEFT model of prompt, prefix or p-tuning: no layer of it holds an adapter."""
    return any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values())


def as_written(layer: Any, x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """What PEFT's forward of a tuner layer runs in, if bitsandbytes' forward might write to the base layer.

    Nothing while Dynamo traces, which traces no write to ``.data``.
    """
    if torch.compiler.is_compiling():
        return NOTHING
    base, device = unwrapped(layer.get_base_layer()), x.device.type
    bias = bias_of(base)
    if bias is not None:
        dtypes = {bias.dtype, x.dtype, compute_dtype(base, x)}
        if autocast_is_on(device):  # BOFT's base layer is given the product with its rotation
            dtypes.add(torch.get_autocast_dtype(device))
        if len(dtypes) > 1:
            return AsWritten()
    return AsWritten() if is_4bit(base) and overwrites_quant_state(x) else NOTHING


def is_idle(layer: Any) -> bool:
    """Whether a call of a tuner layer computes its base layer alone, after unmerging where that is merged.

    Unmerging rounds to other dtypes under autocast than merging did outside.
    """
    return layer.disable_adapters or layer.merged  # type: ignore[no-any-return]


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
    if is_idle(layer):
        return found
    for container in filter(None, map(layer._modules.get, layer.adapter_layer_names)):
        for adapter in layer.active_adapters:
            for held in (container._modules, container._parameters, container._buffers):
                value = held.get(adapter)
                tensors = (*value.parameters(), *value.buffers()) if isinstance(value, torch.nn.Module) else (value,)
                found |= {tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()}
    return found
