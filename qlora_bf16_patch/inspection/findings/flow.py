"""In which dtype hidden states reach a module's weight, derived without a call of the model.

Modules are taken to run in the order in which they are registered, and the first floating weight to get its own dtype.
Layers of a stack have a residual stream, which keeps the wider of two dtypes. What a norm of a model's own makes of a
dtype is asked of a copy of it whose weight is a meta tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ...hosts.bitsandbytes import is_kbit, unwrapped
from ...hosts.wrappers import is_adapted, reached
from ...numerics.dtypes import mixed_is_allowed
from ...numerics.overlay import overlay

Dtype = torch.dtype | None
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Meeting(NamedTuple):
    """Hidden states and a weight of two dtypes.

    Attributes:
        path: of the module.
        module: that holds the weight.
        operation: torch's name of the operation.
        given: dtype of the hidden states.
        weight: dtype of the weight.
        certain: whether the module's forward is torch's own, and not a model's code that may cast.
    """

    path: str
    module: nn.Module
    operation: str
    given: torch.dtype
    weight: torch.dtype
    certain: bool


def meetings(model: nn.Module) -> Iterator[Meeting]:
    """Those that torch would refuse outside of autocast, in the order of the modules."""
    flow = _Flow()
    flow.through("", model, None, in_stack=False)
    yield from flow.found


class _Flow:
    """Follows one dtype through the modules, and keeps what it meets."""

    def __init__(self) -> None:
        self.found: list[Meeting] = []
        self._made: dict[tuple[Any, ...], Dtype] = {}  # by a norm's class, its weight's dtype and what it is given

    def through(self, path: str, module: nn.Module, hidden: Dtype, in_stack: bool) -> Dtype:
        """The dtype of the hidden states behind a module."""
        if is_kbit(module) or (is_adapted(module) and is_kbit(_innermost(module))):
            return hidden  # it gives back its input's
        own = _floating(module)
        if isinstance(module, nn.Embedding):
            return hidden if in_stack or not own else own[0].dtype  # in a layer it is a table of positions
        operation = _operation(module)
        if own and operation is not None:
            return self._torchs_own(path, module, operation, own[0], hidden, in_stack)
        if _is_norm(module):
            return self._norm(module, own[0], hidden)
        return self._inside(path, module, own, hidden, in_stack)

    def _torchs_own(
        self, path: str, module: nn.Module, operation: str, weight: torch.Tensor, hidden: Dtype, in_stack: bool
    ) -> Dtype:
        if hidden is None or (operation == "conv" and not in_stack):  # images and sounds, which the caller gives
            return weight.dtype
        kind = "product" if operation in ("linear", "conv", "recurrent") else operation
        given = torch.empty(0, dtype=hidden, device=weight.device)
        if hidden != weight.dtype and not (kind != "product" and mixed_is_allowed(kind, given, weight.dtype)):
            self.found.append(Meeting(path, module, operation, hidden, weight.dtype, True))
        return hidden

    def _norm(self, module: nn.Module, weight: torch.Tensor, hidden: Dtype) -> Dtype:
        if hidden is None:
            return weight.dtype
        key = (type(module), weight.dtype, weight.shape, hidden)
        if key not in self._made:
            self._made[key] = _asked(module, hidden) or torch.promote_types(hidden, weight.dtype)
        return self._made[key]

    def _inside(
        self, path: str, module: nn.Module, own: list[torch.nn.Parameter], hidden: Dtype, in_stack: bool
    ) -> Dtype:
        entered = hidden
        for one in own if in_stack else ():  # experts and routers
            if hidden is not None and one.dim() > 1 and one.dtype != hidden:
                self.found.append(Meeting(path, module, "product", hidden, one.dtype, False))
                break
        children = list(reached(module))
        if in_stack:  # some models register the norm that a layer begins with behind all else (Mixtral)
            children.sort(key=lambda pair: not _is_norm(pair[1]))
        elif hidden is None:  # and some a head before the model (Camembert)
            children = _heads_last(children)
        for name, child in children:
            inner = in_stack or isinstance(module, nn.ModuleList)
            hidden = self.through(f"{path}.{name}".lstrip("."), child, hidden, inner)
        return _wider(entered, hidden) if in_stack else hidden


def _floating(module: nn.Module) -> list[nn.Parameter]:
    return [one for one in module._parameters.values() if one is not None and one.is_floating_point()]


def _is_norm(module: nn.Module) -> bool:
    """Whether it holds vectors and nothing else."""
    own = _floating(module)
    return bool(own) and not module._modules and all(one.dim() < 2 for one in own)


def _heads_last(children: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Parts with linear layers and no stack, behind those with one, where they stand before an embedding."""
    stacks = [any(isinstance(part, nn.ModuleList) for part in child.modules()) for _, child in children]
    embeds = [any(isinstance(part, nn.Embedding) for part in child.modules()) for _, child in children]
    last = [
        not (stacks[i] or embeds[i])
        and any(embeds[i + 1 :])
        and any(isinstance(one, nn.Linear) for one in child.modules())
        for i, (_, child) in enumerate(children)
    ]
    return [pair for _, pair in sorted(zip(last, children, strict=True), key=lambda both: both[0])]


def _wider(one: Dtype, other: Dtype) -> Dtype:
    return other if one is None else one if other is None else torch.promote_types(one, other)


def _operation(module: nn.Module) -> str | None:
    """What a layer whose forward is torch's own computes; None for another one's."""
    cls: Any = type(module)
    for base, operation in (
        (nn.Linear, "linear"),
        (nn.modules.conv._ConvNd, "conv"),
        (_RECURRENT, "recurrent"),
        ((nn.LayerNorm, nn.GroupNorm), "norm"),
        (nn.modules.batchnorm._NormBase, "batch_norm"),
    ):
        if issubclass(cls, base):
            where = getattr(cls.forward, "__module__", None) or ""
            return operation if where.startswith("torch.nn.modules.") else None
    return None


def _innermost(module: Any) -> Any:
    while is_adapted(module):
        module = unwrapped(module._modules["base_layer"])
    return module


def _asked(module: nn.Module, hidden: torch.dtype) -> Dtype:
    """What the forward of a layer with vectors alone gives for hidden states of a dtype; None where it cannot tell."""
    own, buffers = _on_meta(module._parameters), _on_meta(module._buffers)
    width = next((one.shape[-1] for one in own.values() if one is not None and one.dim()), 1)
    given = torch.empty(1, 1, width, dtype=hidden, device="meta")
    for arguments in ((given,), (given, given)):  # some norms are given a gate as well (Qwen3-Next)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                copy: Any = overlay(module, _parameters=own, _buffers=buffers)  # nothing of the model's is written to
                result = type(copy).forward(copy, *arguments)
        except Exception:  # of a model's own code: a kernel of a GPU alone, other arguments
            continue
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            return result.dtype
    return None


def _on_meta(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    return {
        name: None if one is None else torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in tensors.items()
    }
