"""Parameters that FSDP1 cannot flatten together.

It makes one tensor of all parameters of a unit, and raises where their dtypes differ or one is an integer
(torch/distributed/fsdp/_flat_param.py, _validate_tensors_to_flatten, torch 2.13.0). Its units are taken to be those of
PEFT's policy (peft/utils/other.py, fsdp_auto_wrap_policy, 0.21.2), which Trainer takes: each layer of a stack, each
trainable layer that has a weight and no children, and the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ...hosts.bitsandbytes import is_kbit_weight
from ..advice import advice
from ..dtypes import short
from .finding import Finding, Looked

_UNIFORM = "under FSDP1 one unit's parameters become one tensor, which raises: Must flatten tensors with uniform dtype"
_INTEGERS = "under FSDP1 one unit's parameters become one tensor, which raises: Cannot flatten integer dtype tensors"


def find(looked: Looked) -> Iterator[Finding]:
    for path, unit, parameters in units(looked.model):
        examples: dict[torch.dtype, str] = {}
        counts: dict[torch.dtype, int] = {}
        for name, parameter in parameters:
            examples.setdefault(parameter.dtype, name)
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + 1
        integers = any(not dtype.is_floating_point for dtype in examples)
        if len(examples) < 2 and not integers:
            continue
        held = ", ".join(f"{short(dtype)} ({_shown(name, counts[dtype])})" for dtype, name in examples.items())
        packed = {one.dtype for _, one in parameters if is_kbit_weight(one) and not one.is_floating_point()}
        kind = "FSDP1 8 bits" if torch.int8 in packed else "FSDP1 packed" if packed else "FSDP1"
        say = advice(kind, looked.program)
        meaning = _UNIFORM if next(iter(examples)).is_floating_point else _INTEGERS
        yield Finding(path, type(unit).__name__, "FSDP1", f"its parameters are {held}", meaning, say)


def units(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[tuple[str, nn.Parameter]]]]:
    """Path, module and parameters of each unit, the outermost last; a parameter is in one of them."""
    seen: set[int] = set()
    for path, module in _inner_units(model):
        yield path, module, _own(module, seen)
    yield "", model, _own(model, seen)


def _inner_units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    stacks = {path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    layers = []
    for path, module in model.named_modules():
        weight = dict(module._parameters.items()).get("weight")  # a ScriptModule's are no dict
        if weight is not None and weight.requires_grad and not any(True for _ in module.children()):
            yield path, module
        elif path.rpartition(".")[0] in stacks:
            layers.append((path, module))
    yield from reversed(layers)  # the innermost first


def _own(module: nn.Module, seen: set[int]) -> list[tuple[str, nn.Parameter]]:
    found = [(name, one) for name, one in module.named_parameters() if id(one) not in seen]
    seen.update(id(one) for _, one in found)
    return found


def _shown(name: str, count: int) -> str:
    return name if count == 1 else f"{name} and {count - 1} more"
