"""``peft.lora.linear4bit`` and its 8-bit sibling: evaluated outside of autocast, a LoRA layer computes as it trained.

Training is upstream's own, and so is all that runs under autocast; operands are cast there only where torch refuses
them. Without gradients and outside of autocast the layer computes what it computes inside, in its compute dtype, unless
its model was seen to train outside of autocast: then what that training computed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..engine.installation import Installation, upstream
from ..hosts.bitsandbytes import activations, compute_dtype, unwrapped
from ..hosts.lora import Adapter, base_is_plain, is_dora, is_upstreams, plain_adapters
from ..hosts.peft import adapter_dtypes, as_written, is_idle
from ..numerics import training
from ..numerics.autocast import NOTHING, autocast_if_off
from ..numerics.compiling import trace_attributes_without_modes
from ..numerics.dtypes import HALF, autocast_is_on
from ..numerics.mode import CastOnMismatch
from ..numerics.overlay import overlay
from ..watching.events import Record, listeners, record_of
from ..watching.running import here
from .computed import tell_computed
from .linear4bit import warn_of_float32


def forward(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over the ``forward`` of PEFT's ``Linear4bit`` or ``Linear8bitLt``."""
    record = record_of(installation)
    skips_none = is_upstreams(upstream(original))  # our own sum does not call the original

    @functools.wraps(original)
    def patched(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return original(self, x, *args, **kwargs)
        if not x.is_floating_point():
            x = activations(self, x)
        if training.computes_as_upstream(self, autocast_is_on(x.device.type)) or (
            (eager := not torch.compiler.is_compiling()) and here.gradients
        ):
            return _as_upstream(original, record, self, x, args, kwargs)
        dtype = compute_dtype(self, x)
        if dtype is torch.float32 and x.dtype in HALF and "compute_dtype" not in installation.notes:
            warn_of_float32(installation, unwrapped(self.get_base_layer()), x.dtype)
        if eager and listeners:
            tell_computed(installation, self, x.dtype, dtype)
        adapters = plain_adapters(self, x) if skips_none and not (args or kwargs) else None
        if adapters is not None and _adds_up(x, dtype, adapters):
            return _added_up(self, x, dtype, adapters)
        if is_idle(self):
            return _as_upstream(original, record, self, x, args, kwargs)
        # What is cast in the region is cast once: PEFT before 0.16 hands a second adapter the first one's cast input.
        layer = self if dtype in HALF else overlay(self, cast_input_dtype_enabled=False)
        with autocast_if_off(x.device.type, dtype), _as_written(self, x):
            return original(layer, x, *args, **kwargs).to(x.dtype)

    return patched


def _as_written(layer: Any, x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """What upstream's forward runs in. DoRA's reads the base layer's bias, and dequantizes its weight."""
    return as_written(layer, x) if is_dora(layer) else NOTHING


def _as_upstream(original: Any, record: Record, self: Any, x: torch.Tensor, args: Any, kwargs: Any) -> Any:
    """Upstream's own; where torch would refuse an operation its operands are cast, and the result to the input's dtype.

    In a LoRA layer torch refuses dtypes only where an adapter's differ, or the input was not cast to them.
    """
    if autocast_is_on(x.device.type):
        with _as_written(self, x):
            return original(self, x, *args, **kwargs)
    dtypes = adapter_dtypes(self)
    # Inside CUDA's autocast PEFT casts no input, be it on the CPU (it asks for CUDA's alone, peft 0.21.2).
    if torch.is_autocast_enabled() or not getattr(self, "cast_input_dtype_enabled", True):
        dtypes.add(x.dtype)
    if len(dtypes) < 2:
        with _as_written(self, x):
            return original(self, x, *args, **kwargs)
    if torch.compiler.is_compiling():  # maybe this layer by itself, with no model's mode around it
        trace_attributes_without_modes()
    mode = CastOnMismatch(functools.partial(record.tell, self))
    with mode, _as_written(self, x):  # not `as mode`: Dynamo forgets it at a graph break in here (torch 2.13.0)
        result = original(self, x, *args, **kwargs)
    return result.to(x.dtype) if mode.casts else result


def _adds_up(x: torch.Tensor, dtype: torch.dtype, adapters: list[Adapter]) -> bool:
    """Whether under autocast nothing is rounded on the way but to the compute dtype.

    Upstream casts the input to each adapter's dtype first, and adds in what a stream of another half precision promotes
    to.
    """
    if dtype not in HALF:
        return True
    if x.dtype in HALF and x.dtype is not dtype:
        return False
    for adapter in adapters:  # a loop, since a generator costs a frame for each
        given = adapter[0].dtype
        if given is not torch.float32 and given is not dtype:
            return False
    return True


def _added_up(layer: Any, x: torch.Tensor, dtype: torch.dtype, adapters: list[Adapter]) -> torch.Tensor:
    """Upstream's sum, to the bit what it is under autocast in ``dtype``, without the region's cost.

    The adapters' weights are cast at each call: a kept cast could go stale unseen, since writes through ``.data`` leave
    no trace. Nothing is cloned: upstream's clone guards against a view that is written to, and here none is.
    """
    cast = x.to(dtype)
    base = layer._modules["base_layer"]
    # A hook, or another adapter's layer, is given what it would be given upstream.
    result: torch.Tensor = base(cast if base_is_plain(base) else x).to(x.dtype)
    linear = nn.functional.linear  # looked up here, since profilers put their own in its place
    rows = cast.flatten(0, -2)  # once, where `linear` would do it for each matrix
    for a, a_bias, b, b_bias, scaling in adapters:
        low = linear(rows, a.to(dtype), None if a_bias is None else a_bias.to(dtype))
        out = linear(low, b.to(dtype), None if b_bias is None else b_bias.to(dtype)).view(result.shape)
        out = out if scaling == 1.0 else out * scaling
        # A sum with float32 is computed in float32; one of two half precisions would be, too.
        result = result + (out if x.dtype is torch.float32 else out.to(x.dtype))
    return result
