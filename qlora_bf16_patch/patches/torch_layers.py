"""Torch's own layers, known beforehand by what they do: the input is cast to the weights, and the result back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.rnn import PackedSequence

from ..numerics.dtypes import autocast_is_on, cast, mixed_is_allowed
from ..numerics.overlay import overlay
from ..numerics.places import is_forward
from ..watching.watched import AsksForModes, Watched

_RECURRENT = tuple(cls.forward for cls in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell))
_PLAIN = (torch.Tensor, nn.Parameter)


def forward_class(cls: Any, otherwise: type[Watched]) -> type[Watched]:
    """What stands at the forward of a class' objects: by what torch's own forward does, if the class has that."""
    if cls.forward is nn.Embedding.forward:
        return Embedding
    if cls.forward in _RECURRENT:
        return Recurrent
    if cls.forward is nn.TransformerEncoderLayer.forward:
        return EncoderLayer
    return Weighted if kind(cls) else otherwise


def kind(cls: Any) -> str | None:
    """How torch treats mixed dtypes in this class' forward, if that is torch's own."""
    if cls.forward is nn.Linear.forward or (issubclass(cls, _ConvNd) and cls.forward.__module__ == _ConvNd.__module__):
        return "product"
    if cls.forward in (nn.LayerNorm.forward, nn.GroupNorm.forward):
        return "norm"
    return "batch_norm" if cls.forward in (_BatchNorm.forward, _InstanceNorm.forward) else None


class Weighted(Watched):
    """Linear, convolutions and normalizations: the input is cast to the weights, the result back."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        cls: Any = type(self.instance())
        self.how = kind(cls) or "product"
        # None where another party has put its own in the place of torch's.
        is_torchs = getattr(cls.forward, "__globals__", {}).get("__name__", "").startswith("torch.nn.modules.")
        self.upstream = cls.forward if is_torchs else None

    @is_forward
    def __call__(self, /, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        module = self.instance()
        own = module.__dict__
        weight = own["_parameters"].get("weight", own.get("weight"))
        if type(weight) in _PLAIN and getattr(input, "dtype", None) is weight.dtype and not self.kinds:
            return self.original(input, *args, **kwargs)
        # A weight of None is a parametrization, computed at each look (and spectral norm's moves its vectors), one of
        # a subclass may take what torch's own refuses, and so may another party's forward.
        if (
            type(weight) not in _PLAIN
            or not isinstance(input, torch.Tensor)
            or input.dtype is weight.dtype
            or not self.installation.on
            or self.below is not None
            or type(module).forward is not self.upstream
            or _is_taken(self.how, input, weight)
        ):
            return super().__call__(input, *args, **kwargs)
        operation = "linear" if self.how == "product" else self.how
        if not self.watch.tell(module, operation, "input", input.dtype, weight.dtype):
            return self.original(input, *args, **kwargs)
        return self.original(input.to(weight.dtype), *args, **kwargs).to(input.dtype)


class Recurrent(Watched):
    """They compare dtypes in Python before any operation: what they are given is cast to their weights, and back."""

    @is_forward
    def __call__(self, /, input: Any, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.instance()
        weight = next((value for value in module._parameters.values() if value is not None), None)
        given = getattr(input, "data", input)  # a packed sequence
        if (
            not self.installation.on
            or self.below is not None
            or weight is None
            or given.dtype == weight.dtype
            or autocast_is_on(given.device.type)
            or not self.watch.tell(module, type(module).__name__.lower(), "input", given.dtype, weight.dtype)
        ):
            return super().__call__(input, *args, **kwargs)
        values = [cast(weight.dtype, value) for value in args], {n: cast(weight.dtype, v) for n, v in kwargs.items()}
        return _cast_back(given.dtype, self.original(input.to(weight.dtype), *values[0], **values[1]))


class EncoderLayer(AsksForModes):
    """While Dynamo traces, no function mode is asked about the fused operation of an evaluation (torch 2.13.0)."""

    def compiled(self, /, src: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.instance()
        if self.installation.on and self.below is None and src.dtype != layer.norm1.weight.dtype:
            # 0 is an activation that the fused operation does not know.
            layer = overlay(layer, activation_relu_or_gelu=0)
            with self.watch.while_compiling():
                return type(layer).forward(layer, src, *args, **kwargs)
        return super().compiled(src, *args, **kwargs)


class Embedding(Watched):
    """Token ids are integers."""

    @is_forward
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs.get("input")
        if self.installation.on and self.below is None and isinstance(ids, torch.Tensor) and ids.is_floating_point():
            where = f"{self.path or 'the model'} ({type(self.instance()).__name__})"
            raise TypeError(
                f"{where} was given {ids.dtype} token ids of shape {tuple(ids.shape)}. Somebody cast "
                "input_ids along with the activations, and bfloat16 rounds whole numbers above 256. Leave input_ids "
                "integers; qlora_bf16_patch makes casts of the inputs needless."
            )
        return super().__call__(*args, **kwargs)


def _cast_back(dtype: torch.dtype, result: Any) -> Any:
    if isinstance(result, PackedSequence):
        return result.to(dtype)
    return tuple(_cast_back(dtype, item) for item in result) if isinstance(result, tuple) else cast(dtype, result)


def _is_taken(kind: str, input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a mixture is torch's business: it takes it, or one of the two is no floating point at all, or float8."""
    if not input.is_floating_point() or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return True
    return mixed_is_allowed(kind, input, weight.dtype)
