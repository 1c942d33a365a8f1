"""Torch's own layers, known beforehand by what they do: the input is cast to the weights, and the result back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.rnn import PackedSequence

from ..engine.installation import Installation, call_shadowed, shadows
from ..numerics.dtypes import autocast_is_on, cast, mixed_is_allowed
from ..numerics.overlay import overlay
from ..watching.events import PATH
from ..watching.watch import Watch

_PLAIN = (nn.Parameter, torch.Tensor)
_RECURRENT = tuple(cls.forward for cls in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell))


def forward_for(installation: Installation, watch: Watch, cls: Any) -> Callable[..., Any] | None:
    """The forward of a class' objects, or None where the class' own is not torch's, or takes every input as it is."""
    if cls.forward is nn.Embedding.forward:
        return _embedding(installation, watch, cls)
    if cls.forward in _RECURRENT:
        return _recurrent(installation, watch, cls)
    if cls.forward is nn.TransformerEncoderLayer.forward:
        return _encoder_layer(installation, cls)
    return _weighted(installation, watch, cls) if kind(cls) else None


@functools.cache
def kind(cls: Any) -> str | None:
    """How torch treats mixed dtypes in this class' forward, if that is torch's own."""
    if cls.forward is nn.Linear.forward or (issubclass(cls, _ConvNd) and cls.forward.__module__ == _ConvNd.__module__):
        return "product"
    if cls.forward in (nn.LayerNorm.forward, nn.GroupNorm.forward):
        return "norm"
    return "batch_norm" if cls.forward in (_BatchNorm.forward, _InstanceNorm.forward) else None


@functools.cache
def _weighted(installation: Installation, watch: Watch, cls: Any) -> Callable[..., Any]:
    """Linear, convolutions and normalizations: the input is cast to the weights, the result back."""
    how, upstream = kind(cls) or "product", cls.forward
    is_torchs = getattr(upstream, "__globals__", {}).get("__name__", "").startswith("torch.nn.modules.")

    @functools.wraps(cls.forward)
    def forward(self: Any, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        weight = own["_parameters"].get("weight", own.get("weight"))
        if how == "batch_norm" and installation.on and _has_other_statistics(own, weight):
            return _looked_at(installation, watch, self, input, args, kwargs)
        if isinstance(weight, torch.Tensor) and (not isinstance(input, torch.Tensor) or input.dtype is weight.dtype):
            return call_shadowed(installation, self, input, *args, **kwargs)
        if not installation.on:
            return call_shadowed(installation, self, input, *args, **kwargs)
        if not is_torchs or type(self).forward is not upstream or shadows(installation, self):
            # Another party's forward may take what torch's refuses.
            return _looked_at(installation, watch, self, input, args, kwargs)
        if type(weight) not in _PLAIN and (weight is not None or "weight" not in own["_parameters"]):
            # A subclass may take mixed dtypes itself. A parametrization is computed at each look (and spectral norm's
            # moves its vectors).
            return _looked_at(installation, watch, self, input, args, kwargs)
        if weight is None or _is_taken(how, input, weight):
            return call_shadowed(installation, self, input, *args, **kwargs)
        watch.tell(self, "linear" if how == "product" else how, "input", input.dtype, weight.dtype)
        return call_shadowed(installation, self, input.to(weight.dtype), *args, **kwargs).to(input.dtype)

    return forward


@functools.cache
def _recurrent(installation: Installation, watch: Watch, cls: Any) -> Callable[..., Any]:
    """They compare dtypes in Python before any operation: what they are given is cast to their weights, and back."""

    @functools.wraps(cls.forward)
    def forward(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        weight = next((value for value in own["_parameters"].values() if value is not None), None)
        given = getattr(input, "data", input)  # a packed sequence
        if not installation.on or weight is None or given.dtype == weight.dtype or autocast_is_on(given.device.type):
            return call_shadowed(installation, self, input, *args, **kwargs)
        watch.tell(self, cls.__name__.lower(), "input", given.dtype, weight.dtype)
        values = [cast(weight.dtype, value) for value in args], {n: cast(weight.dtype, v) for n, v in kwargs.items()}
        result = call_shadowed(installation, self, input.to(weight.dtype), *values[0], **values[1])
        return _cast_back(given.dtype, result)

    return forward


@functools.cache
def _encoder_layer(installation: Installation, cls: Any) -> Callable[..., Any]:
    """While Dynamo traces, no function mode is asked about the fused operation of an evaluation (torch 2.13.0)."""

    @functools.wraps(cls.forward)
    def forward(self: Any, src: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        mixed = torch.compiler.is_compiling() and src.dtype != self.norm1.weight.dtype
        # 0 is an activation that the fused operation does not know.
        layer = overlay(self, activation_relu_or_gelu=0) if mixed and installation.on else self
        return call_shadowed(installation, layer, src, *args, **kwargs)

    return forward


def _cast_back(dtype: torch.dtype, result: Any) -> Any:
    if isinstance(result, PackedSequence):
        return result.to(dtype)
    return tuple(_cast_back(dtype, item) for item in result) if isinstance(result, tuple) else cast(dtype, result)


def _has_other_statistics(own: dict[str, Any], weight: Any) -> bool:
    """Whether running statistics have another dtype than the weights.

    Torch updates them before it refuses (2.13.0), so a call that was run again would count its batch twice.
    """
    mean = own["_buffers"].get("running_mean")
    return weight is not None and mean is not None and mean.dtype is not weight.dtype


def _is_taken(kind: str, input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a mixture is torch's business: it takes it, or one of the two is no floating point at all, or float8."""
    if not input.is_floating_point() or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return True
    return mixed_is_allowed(kind, input, weight.dtype)


def _looked_at(installation: Installation, watch: Watch, self: Any, input: Any, args: Any, kwargs: Any) -> Any:
    """Operation by operation, where no cast at the module's boundary is known to be right."""
    with watch.while_compiling() if torch.compiler.is_compiling() else watch.mode(self):
        return call_shadowed(installation, self, input, *args, **kwargs)


@functools.cache
def _embedding(installation: Installation, watch: Watch, cls: Any) -> Callable[..., Any]:
    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs.get("input")
        if installation.on and isinstance(ids, torch.Tensor) and ids.is_floating_point():
            raise TypeError(
                f"{self.__dict__[PATH]} ({type(self).__name__}) was given {ids.dtype} token ids of shape "
                f"{tuple(ids.shape)}. Somebody cast input_ids along with the activations, and bfloat16 rounds whole "
                "numbers above 256. Leave input_ids integers; qlora_bf16_patch makes casts of the inputs needless."
            )
        return call_shadowed(installation, self, *args, **kwargs)

    return forward
