"""``peft.lora.linear4bit`` and its 8-bit sibling: the whole LoRA layer computes in its compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


def _load() -> Factory:
    import functools

    import torch
    from torch import nn
    from torch.nn.modules import module as torch_module

    from ..dtypes import HALF, compute_dtype, stand_in
    from ..modes import region

    has_global_hooks: Any = torch_module._has_any_global_hook

    def is_plain(adapter: Any, device: torch.device) -> bool:
        """Whether calling the module would do nothing but ``F.linear``: unhooked, unwrapped, not sharded nor away."""
        return (
            type(adapter) is nn.Linear
            and "forward" not in adapter.__dict__
            and not (adapter._forward_hooks or adapter._forward_pre_hooks)
            and not (adapter._backward_hooks or adapter._backward_pre_hooks)
            and type(adapter.weight) is nn.Parameter
            and adapter.weight.device == device
        )

    def plain_adapters(layer: Any, x: torch.Tensor, options: bool) -> list[tuple[Any, Any, float]] | None:
        """A, B and scaling of the active adapters, or None where the layer does more than to add them up.

        That is: PEFT before 0.16 (variants were told by other attributes), a merge, adapters switched off, a batch with
        adapter names, a variant such as DoRA, dropout, casts that the user has switched off, an adapter that is hooked,
        sharded, offloaded or of another class.
        """
        if options or x.dim() < 2 or not x.numel() or layer.disable_adapters or layer.merged or has_global_hooks():
            return None
        if not getattr(layer, "cast_input_dtype_enabled", False) or not hasattr(layer, "lora_variant"):
            return None
        found = []
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
            drops = dropout.training and type(dropout) is not nn.Identity
            if name in layer.lora_variant or drops or not is_plain(a, x.device) or not is_plain(b, x.device):
                return None
            found.append((a, b, layer.scaling[name]))
        return found

    def added_up(layer: Any, x: torch.Tensor, dtype: torch.dtype, adapters: list[Any]) -> torch.Tensor:
        """Upstream's sum, to the bit what it is in an autocast region of ``dtype``, without the region's cost.

        The adapters' weights are cast at each call: a kept cast could go stale unseen, since writes through ``.data``
        leave no trace. Nothing is cloned: upstream's clone guards against a view that is written to, and here none is.
        """
        cast = x.to(dtype)
        result: torch.Tensor = layer.base_layer(cast).to(x.dtype)
        rows = cast.flatten(0, -2)  # once, where `linear` would do it for each matrix
        for a, b, scaling in adapters:
            out = linear(linear(rows, a, dtype), b, dtype).view(result.shape)
            out = out if scaling == 1.0 else out * scaling
            # A sum with float32 is computed in float32; one of two half precisions would be, too.
            result = result + (out if x.dtype == torch.float32 else out.to(x.dtype))
        return result

    def linear(rows: torch.Tensor, adapter: Any, dtype: torch.dtype) -> torch.Tensor:
        bias = adapter.bias
        return nn.functional.linear(rows, adapter.weight.to(dtype), None if bias is None else bias.to(dtype))

    def adapters_round(layer: Any, dtype: torch.dtype) -> bool:
        """Whether an active adapter is in a half precision that is not the compute dtype.

        Upstream casts the input to each adapter's dtype in turn, and the next adapter sees it rounded.
        """
        adapters = (layer.lora_A[name] for name in layer.active_adapters if name in layer.lora_A)
        theirs = {getattr(getattr(adapter, "weight", None), "dtype", dtype) for adapter in adapters}
        return any(other in HALF and other != dtype for other in theirs)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not installation.on or not x.dtype.is_floating_point:
                return original(self, x, *args, **kwargs)  # type: ignore[no-any-return]
            dtype, autocast = compute_dtype(self, x), torch.is_autocast_enabled(x.device.type)
            adapters = None if autocast else plain_adapters(self, x, bool(args or kwargs))
            if adapters is not None:
                return added_up(self, x, dtype, adapters)
            layer = self
            if adapters_round(self, dtype) or not (autocast or dtype in HALF):
                layer = stand_in(self, cast_input_dtype_enabled=False)  # what is cast below is cast once
            with region(x.device.type, dtype):
                return original(layer, x, *args, **kwargs).to(x.dtype)  # type: ignore[no-any-return]

        return forward

    return factory


def _patch(bits: int, layer: str, reports: tuple[str, ...]) -> Patch:
    return Patch(
        name=f"peft.lora.linear{bits}bit",
        module="peft.tuners.lora.bnb",
        attribute=f"{layer}.forward",
        load=_load,
        summary=f"LoRA on {bits}-bit layers computes in the compute dtype and gives back the input's dtype",
        distribution="peft",
        requires=">=0.6",
        reports=reports,
    )


LINEAR4BIT = _patch(4, "Linear4bit", ("huggingface/peft#1515", "huggingface/peft#1172"))
LINEAR8BIT = _patch(8, "Linear8bitLt", ("huggingface/peft#101", "huggingface/peft#121", "huggingface/peft#874"))
