"""What a call of PEFT's wrappers reaches, told by what they hold: none of PEFT's modules is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def is_adapted(module: torch.nn.Module) -> bool:
    """Whether it is an adapter's layer around another layer (``BaseTunerLayer``)."""
    return "base_layer" in module._modules and hasattr(module, "adapter_layer_names")


def reached(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The children that a call reaches, each with its name: of ``modules_to_save`` the copy that is in use alone.

    An adapter's own parts are none of them: PEFT casts what they are given (peft 0.21.2, ``_cast_input_dtype``).
    """
    children = module._modules
    if is_adapted(module):
        yield "base_layer", children["base_layer"]
    elif "modules_to_save" in children:
        yield _in_use(module)
    else:
        yield from ((name, child) for name, child in children.items() if child is not None)


def active_pairs(module: torch.nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Of a LoRA layer the first and the second product of each adapter that is active, with the second one's path."""
    own: Any = module
    if not is_adapted(module) or own.disable_adapters or own.merged:
        return
    a, b = (getattr(module._modules.get(name), "_modules", {}) for name in ("lora_A", "lora_B"))
    for name in own.active_adapters:
        if name in a and name in b:
            yield f"lora_B.{name}", a[name], b[name]


def _in_use(wrapper: Any) -> tuple[str, Any]:
    copies = wrapper._modules["modules_to_save"]._modules
    for name in () if wrapper.disable_adapters else wrapper.active_adapters:
        if name in copies:
            return f"modules_to_save.{name}", copies[name]
    return "original_module", wrapper._modules["original_module"]
