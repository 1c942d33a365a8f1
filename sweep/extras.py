"""Toys of models that transformers does not load: their linear layers are replaced as diffusers and hub code do it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from .architectures import Architecture, cloned
from .probing import OutOfReach, Probe


class Extra(Architecture):
    """A model that a function builds.

    Args:
        name: its class's.
        family: ``diffusers`` or ``hub``.
        find: returns a function that builds the model in float32, and what it is given; may raise anything.
    """

    def __init__(
        self, name: str, family: str, find: Callable[[], tuple[Callable[[], nn.Module], dict[str, Any]]]
    ) -> None:
        super().__init__(name, family, None)
        self._find = find

    @cached_property
    def _found(self) -> tuple[Callable[[], nn.Module], dict[str, Any]] | OutOfReach:
        try:
            return self._find()
        except Exception as error:
            return OutOfReach(f"{type(error).__name__}: {error}")

    @property
    def probe(self) -> Probe:
        if isinstance(self._found, OutOfReach):
            raise self._found
        config = SimpleNamespace(model_type=self.name)
        return Probe(config, cloned(self._found[1]), {}, {}, generates=False, checkpoints=False, kept=[])

    def quantized(self, compute_dtype: torch.dtype) -> nn.Module:
        """The model in bf16 with 4-bit layers, as after loading."""
        self.probe  # noqa: B018  # raises why there is none
        assert not isinstance(self._found, OutOfReach)
        torch.manual_seed(0)
        model = self._found[0]().to(torch.bfloat16)
        kept = self.unquantized()
        for name, layer in list(model.named_modules()):
            if type(layer) is nn.Linear and name not in kept:
                model.set_submodule(name, linear4bit(layer, compute_dtype))
        model.is_loaded_in_4bit = True  # type: ignore[assignment]
        return model

    def unquantized(self) -> set[str]:
        """Names of linear layers that can't be in 4 bits."""
        return set()


def linear4bit(layer: nn.Linear, compute_dtype: torch.dtype) -> Linear4bit:
    new = Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute_dtype, quant_type="nf4"
    )
    new.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    return new.to("cpu")
