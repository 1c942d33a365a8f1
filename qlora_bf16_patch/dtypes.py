"""Casting helpers that several patches share. Torch alone; nothing here knows a patch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

HALF = (torch.bfloat16, torch.float16)
_Module = TypeVar("_Module")


def stand_in(module: _Module, **attributes: Any) -> _Module:
    """An object of ``module``'s class that shares everything with it but ``attributes``.

    Upstream's forward is run on it where one attribute must be another for this call alone: nothing is written to the
    module, so no other thread sees it. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).

    Args:
        module: any object with a ``__dict__``.
        attributes: what differs, by its name in the ``__dict__``.
    """
    cls = type(module)
    other = cls.__new__(cls)
    other.__dict__.update(module.__dict__)
    other.__dict__.update(attributes)
    return other


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a device's type; ``torch.is_autocast_enabled`` raises for one that has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def refuse_integers(layer: torch.nn.Module, x: torch.Tensor) -> None:
    """A k-bit layer computes garbage from integers, silently on some paths.

    Raises:
        TypeError: ``x`` is not floating.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"{type(layer).__name__} was given a {x.dtype} tensor of shape {tuple(x.shape)}: its caller cast the "
            "activations to the weight's storage dtype, which destroys them. Cast to the layer's compute_dtype "
            f"({getattr(layer, 'compute_dtype', None)}) instead."
        )


def compute_dtype(layer: Any, x: torch.Tensor) -> torch.dtype:
    """What a k-bit layer, or an adapter on one, computes in: what was configured, else the input's dtype.

    bitsandbytes' 8-bit layers have nothing to configure.
    """
    base = layer.__dict__["_modules"].get("base_layer")
    if base is not None and "base_layer" in base.__dict__["_modules"]:
        base = layer.get_base_layer()  # an adapter on an adapter
    return (layer if base is None else base).__dict__.get("compute_dtype") or x.dtype


def held(module: Any, name: str) -> torch.Tensor | None:
    """A module's weight or bias, also where it is no parameter: FSDP's view into its flat one, a pruned one.

    ``nn.Module.__getattr__`` costs as much as a small operation, and is left out where it can be.
    """
    own = module._parameters
    return own[name] if name in own else getattr(module, name, None)


def bias_of(layer: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What to change in a :func:`stand_in` for ``layer``, so that its bias is in ``dtype``; nothing where it is.

    Every release of bitsandbytes up to 0.50.2 writes ``bias.data = bias.data.to(x.dtype)`` in its forwards, which
    rounds a trained bias for good. Here upstream's forward finds one that fits, and has nothing to write.
    """
    bias = layer.bias
    if bias is None or bias.dtype == dtype:
        return {}
    if "bias" in layer.__dict__:  # a plain attribute: FSDP's view into its flat parameter, a pruned one
        return {"bias": bias.to(dtype)}
    return {"_parameters": {**layer._parameters, "bias": bias.to(dtype)}}


def floating(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The floating tensors among ``values``, one level deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor) and item.is_floating_point())


def mixed_is_allowed(kind: str, x: torch.Tensor, weight: torch.dtype) -> bool:
    """Whether torch itself takes an input of another floating dtype than the weights'.

    Measured on torch 2.13.0: autocast casts matrix products and convolutions on every device, and on CUDA the
    normalizations too. Elsewhere a normalization takes half precision inputs with float32 weights: on CPU each of them
    ("mixed dtype"), on CUDA batch norm alone.

    Args:
        kind: ``product`` or ``norm`` or ``batch_norm``.
        x: the input, of another floating dtype than ``weight``.
        weight: dtype of the weights.
    """
    device = x.device.type
    autocast = autocast_is_on(device)
    if kind == "product":
        return autocast
    if kind == "norm" and device != "cpu":
        return autocast
    return weight == torch.float32 and x.dtype in HALF
