"""``torch.attention`` and ``transformers.attention``: query, key and value of different floating dtypes.

The first stands on scaled dot-product attention; the second on eager attention, the products of activations in a
model's own code (``attn_implementation="eager"``). Flash attention casts by itself in transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch


def _common(*tensors: torch.Tensor) -> torch.dtype:
    """The half precision among query, key and value, in which autocast would compute; float32 where there is none."""
    import torch

    return next((tensor.dtype for tensor in reversed(tensors) if tensor.dtype != torch.float32), tensors[0].dtype)


def _refused(name: str, tensors: list[Any]) -> TypeError:
    query, key, value, mask = (getattr(tensor, "dtype", None) for tensor in tensors)
    return TypeError(
        f"attention was given query, key and value of {query}, {key}, {value} and a mask of {mask}. {name} would have "
        "cast them, but QLORA_BF16_PATCH_STRICT is set: cast them where they are made, or unset it."
    )


def _load_torch() -> Factory:
    import torch

    def taken(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
        """Whether torch takes them as they are: a mask of booleans or of float32 goes with every query."""
        masks = (None, torch.bool, torch.float32, query.dtype)
        return query.dtype == key.dtype == value.dtype and (None if mask is None else mask.dtype) in masks

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def scaled_dot_product_attention(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attn_mask: torch.Tensor | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            if not isinstance(query, torch.Tensor):  # a proxy of torch.fx
                return original(query, key, value, attn_mask, *args, **kwargs)
            dtype = query.dtype
            agree = key.dtype == dtype and value.dtype == dtype and (attn_mask is None or attn_mask.dtype == dtype)
            if agree or not installation.on or query.is_meta or torch.is_autocast_enabled(query.device.type):
                return original(query, key, value, attn_mask, *args, **kwargs)  # type: ignore[no-any-return]
            if installation.strict and not taken(query, key, value, attn_mask):
                raise _refused(TORCH.name, [query, key, value, attn_mask])
            if key.dtype != dtype or value.dtype != dtype:
                common = _common(query, key, value)
                query, key, value = query.to(common), key.to(common), value.to(common)
            if attn_mask is not None and attn_mask.is_floating_point() and attn_mask.dtype != query.dtype:
                # Torch takes an fp32 mask with any query; a cast to fp16 would turn a bf16 minimum into -inf.
                attn_mask = attn_mask.to(torch.float32)
            return original(query, key, value, attn_mask, *args, **kwargs).to(dtype)  # type: ignore[no-any-return]

        return scaled_dot_product_attention

    return factory


def _load_transformers() -> Factory:
    from ..dtypes import autocast_is_on
    from ..modes import Fitted

    def attend(
        installation: Installation,
        eager: Callable[..., Any],
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        agree = key.dtype == query.dtype and value.dtype == query.dtype
        if agree or not installation.on or autocast_is_on(query.device.type):
            return eager(module, query, key, value, *args, **kwargs)

        casts = []

        def cast(given: torch.dtype, to: torch.dtype) -> None:
            casts.append(to)
            if installation.strict:
                mask = args[0] if args else kwargs.get("attention_mask")
                raise _refused(TRANSFORMERS.name, [query, key, value, mask])

        with Fitted(None, cast):  # where torch refuses: some models cast on purpose before they multiply
            output, *weights = eager(module, query, key, value, *args, **kwargs)
        return (output.to(query.dtype) if casts else output, *weights)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
            interface = original(self, attn_implementation, default)
            return functools.partial(attend, installation, interface) if attn_implementation == "eager" else interface

        return get_interface

    return factory


TORCH = Patch(
    name="torch.attention",
    module="torch.nn.functional",
    attribute="scaled_dot_product_attention",
    load=_load_torch,
    summary="attention takes query, key, value and mask of different floating dtypes",
    distribution="torch",
    requires=">=2.4",
    reports=("hiyouga/LlamaFactory#539", "huggingface/transformers#29974"),
)
TRANSFORMERS = Patch(
    name="transformers.attention",
    module="transformers.modeling_utils",
    attribute="AttentionInterface.get_interface",
    load=_load_transformers,
    summary="eager attention takes query, key and value of different floating dtypes",
    distribution="transformers",
    requires=">=5.1",  # before it, a model looked its function up in a dictionary
)
