"""``torch.attention``: scaled dot-product attention of different floating dtypes, where torch would raise."""

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
            if agree or not installation.on or torch.is_autocast_enabled(query.device.type):
                return original(query, key, value, attn_mask, *args, **kwargs)  # type: ignore[no-any-return]
            if installation.strict and not taken(query, key, value, attn_mask):
                raise TypeError(
                    f"attention was given query, key and value of {dtype}, {key.dtype}, {value.dtype} and a mask of "
                    f"{None if attn_mask is None else attn_mask.dtype}. torch.attention would have cast them, but "
                    "QLORA_BF16_PATCH_STRICT is set."
                )
            if key.dtype != dtype or value.dtype != dtype:
                # The half precision of the three, as autocast would compute it.
                common = next((t.dtype for t in (value, key, query) if t.dtype != torch.float32), dtype)
                query, key, value = query.to(common), key.to(common), value.to(common)
            if attn_mask is not None and attn_mask.is_floating_point() and attn_mask.dtype != query.dtype:
                # Torch takes an fp32 mask with any query; a cast to fp16 would turn a bf16 minimum into -inf.
                attn_mask = attn_mask.to(torch.float32)
            return original(query, key, value, attn_mask, *args, **kwargs).to(dtype)  # type: ignore[no-any-return]

        return scaled_dot_product_attention

    return factory


PATCH = Patch(
    name="torch.attention",
    module="torch.nn.functional",
    attribute="scaled_dot_product_attention",
    load=_load,
    summary="attention takes query, key, value and mask of different floating dtypes",
    distribution="torch",
    requires=">=2.4",
    reports=("hiyouga/LlamaFactory#539", "huggingface/transformers#29974"),
)
