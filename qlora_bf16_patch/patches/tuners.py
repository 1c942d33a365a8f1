"""``peft.tuners``: PEFT's other methods on k-bit layers evaluate as they trained, and give back the input's dtype.

Which methods there are, and on which of their classes, is not listed here: every tuner layer around a k-bit layer gets
the forward when PEFT has injected it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..engine.binding import bind
from ..engine.installation import Bound, Installation
from ..hosts.bitsandbytes import activations, compute_dtype
from ..hosts.own_backward import has_own_backward
from ..hosts.peft import adapter_dtypes, as_written, is_idle
from ..numerics import training
from ..numerics.autocast import NOTHING, autocast_if_off, without_modes
from ..numerics.dtypes import HALF, autocast_is_on
from ..numerics.mode import CastOnMismatch
from ..watching.events import listeners, record_of
from ..watching.running import within_gradients
from .computed import tell_computed
from .injection import after_injection, kbit_tuners

# They have patches of their own.
_LORA = ("peft.tuners.lora.bnb",)


def inject_adapter(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``BaseTuner.inject_adapter``."""
    return after_injection(original, installation, take_in)


def take_in(model: torch.nn.Module, installation: Installation) -> None:
    """Give each tuner layer of ``model`` whose base layer is quantized its forward."""
    for module in other_tuners(model, installation):
        bind(TunerForward(installation, module))


def other_tuners(model: torch.nn.Module, installation: Installation) -> Iterator[torch.nn.Module]:
    """The tuner layers around k-bit layers that are not LoRA's."""
    return (module for module in kbit_tuners(model, installation) if type(module).__module__ not in _LORA)


class TunerForward(Bound):
    """The forward of a tuner layer."""

    def __init__(self, installation: Installation, layer: torch.nn.Module) -> None:
        super().__init__(installation, layer)
        cls: Any = type(layer)
        self.record = record_of(installation)
        self.own_backward = has_own_backward(cls)
        self.reads_bias = "bias" in inspect.unwrap(cls.forward).__code__.co_names

    def __call__(self, /, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.instance()
        if not self.installation.on:
            return self.original(x, *args, **kwargs)
        x = activations(layer, x)
        autocast = autocast_is_on(x.device.type)
        upstreams = training.computes_as_upstream(layer, autocast) or within_gradients()
        within, mode = _surroundings(layer, x, autocast, upstreams, self.own_backward)
        told = not torch.compiler.is_compiling() and listeners
        if told and not (autocast or upstreams) and (dtype := compute_dtype(layer, x)) in HALF:
            tell_computed(self.installation, layer, x.dtype, dtype)
        if mode is not None:
            mode.asked = functools.partial(self.record.tell, layer)
        with within, mode or without_modes(), as_written(layer, x) if self.reads_bias else NOTHING:
            result = self.original(x, *args, **kwargs)
        if result.dtype is x.dtype or (upstreams and not (mode and mode.casts)):
            return result
        return result.to(x.dtype)


def _surroundings(
    layer: Any, x: torch.Tensor, autocast: bool, upstreams: bool, own_backward: bool
) -> tuple[contextlib.AbstractContextManager[Any], CastOnMismatch | None]:
    """The region that a call runs in, and the mode for what torch might refuse in there."""
    device, dtype = x.device.type, compute_dtype(layer, x)
    if not autocast and (upstreams or dtype not in HALF or is_idle(layer)):
        return NOTHING, CastOnMismatch()
    in_force = torch.get_autocast_dtype(device) if autocast else dtype
    if not adapter_dtypes(layer) - {in_force, torch.float32}:
        return autocast_if_off(device, in_force), None
    # Autocast casts float32, and leaves another half precision alone.
    region = torch.autocast(device, enabled=False) if own_backward else autocast_if_off(device, in_force)
    return region, CastOnMismatch()
