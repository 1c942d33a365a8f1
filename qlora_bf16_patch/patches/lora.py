"""``peft.lora.linear4bit`` and its 8-bit sibling: the whole LoRA layer computes in its compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


Adapter = tuple[Any, Any, Any, Any, float]


def _load() -> Factory:
    import functools

    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from torch import nn
    from torch.nn.modules import module as torch_module

    from ..dtypes import HALF, autocast_is_on, compute_dtype, refuse_integers, stand_in
    from ..modes import region

    kbit = (Linear4bit, Linear8bitLt)
    has_global_hooks: Any = torch_module._has_any_global_hook

    # The hot path reads `__dict__` and `_modules`: nn.Module.__getattr__ costs as much as a small operation.

    def weight_of(adapter: Any) -> Any:
        """The weight, if calling the module would do nothing but ``F.linear``: unhooked, unwrapped, not sharded."""
        own = adapter.__dict__
        if (
            type(adapter) is not nn.Linear
            or "forward" in own
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        ):
            return None
        weight = own["_parameters"].get("weight")
        return weight if type(weight) is nn.Parameter else None

    def plain_adapters(layer: Any, x: torch.Tensor) -> list[Adapter] | None:
        """Weight and bias of A and of B, and the scaling, of the active adapters; None where they do more than add up.

        That is: PEFT before 0.16 (variants were told by other attributes), a merge, adapters switched off, a variant
        such as DoRA, dropout, casts that the user has switched off, an adapter that is hooked, sharded, offloaded or of
        another class.
        """
        own, modules = layer.__dict__, layer._modules
        if own["_disable_adapters"] or own["merged_adapters"] or x.dim() < 2 or not x.numel() or has_global_hooks():
            return None
        if not own.get("cast_input_dtype_enabled") or "lora_variant" not in own:
            return None
        all_a, all_b = modules["lora_A"]._modules, modules["lora_B"]._modules
        dropouts, variants, device = modules["lora_dropout"]._modules, own["lora_variant"], x.device
        found: list[Adapter] = []
        for name in layer.active_adapters:
            if name not in all_a:
                continue
            dropout = dropouts[name]
            a, b = weight_of(all_a[name]), weight_of(all_b[name])
            if a is None or b is None or a.device != device or b.device != device or name in variants:
                return None
            if type(dropout) is not nn.Identity and (type(dropout) is not nn.Dropout or dropout.training):
                return None
            if dropout._forward_hooks or dropout._forward_pre_hooks:
                return None
            found.append((a, all_a[name]._parameters["bias"], b, all_b[name]._parameters["bias"], own["scaling"][name]))
        return found

    def added_up(layer: Any, x: torch.Tensor, dtype: torch.dtype, adapters: list[Adapter]) -> torch.Tensor:
        """Upstream's sum, to the bit what it is in an autocast region of ``dtype``, without the region's cost.

        The adapters' weights are cast at each call: a kept cast could go stale unseen, since writes through ``.data``
        leave no trace. Nothing is cloned: upstream's clone guards against a view that is written to, and here none is.
        """
        cast = x.to(dtype)
        base = layer._modules["base_layer"]
        # A hook, or another adapter's layer, is given what it would be given upstream.
        own = base.__dict__
        hooked = own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own or type(base) not in kbit
        result: torch.Tensor = base(x if hooked else cast).to(x.dtype)
        linear = nn.functional.linear  # looked up here, since profilers put their own in its place
        rows = cast.flatten(0, -2)  # once, where `linear` would do it for each matrix
        for a, a_bias, b, b_bias, scaling in adapters:
            low = linear(rows, a.to(dtype), None if a_bias is None else a_bias.to(dtype))
            out = linear(low, b.to(dtype), None if b_bias is None else b_bias.to(dtype)).view(result.shape)
            out = out if scaling == 1.0 else out * scaling
            # A sum with float32 is computed in float32; one of two half precisions would be, too.
            result = result + (out if x.dtype is torch.float32 else out.to(x.dtype))
        return result

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
            if not installation.on:
                return original(self, x, *args, **kwargs)  # type: ignore[no-any-return]
            refuse_integers(self, x)
            dtype, autocast = compute_dtype(self, x), autocast_is_on(x.device.type)
            adapters = None if autocast or args or kwargs else plain_adapters(self, x)
            if adapters is not None:
                return added_up(self, x, dtype, adapters)
            layer = self
            rounds = x.dtype is not torch.float64 and adapters_round(self, dtype)  # autocast leaves float64 as it is
            if rounds or not (autocast or dtype in HALF):
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
