"""``*.autocast_output``: under autocast a 4-bit layer gives back autocast's dtype, as ``nn.Linear`` does.

Off by default: it is an option on top of ``bitsandbytes.linear4bit`` and ``peft.lora.linear4bit``, whose contract is
that the input's dtype comes back. It is for code that calls flash-attention itself, which takes half precisions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch
from . import linear4bit, lora

if TYPE_CHECKING:
    import torch


def _load() -> Factory:
    import functools

    import torch

    from ..dtypes import autocast_is_on

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            result: torch.Tensor = original(self, x, *args, **kwargs)
            if installation.on and autocast_is_on(x.device.type):
                return result.to(torch.get_autocast_dtype(x.device.type))
            return result

        return forward

    return factory


def _over(patch: Patch) -> Patch:
    library = patch.name.rpartition(".")[0]
    return Patch(
        name=f"{library}.autocast_output",
        module=patch.module,
        attribute=patch.attribute,
        load=_load,
        summary=f"under autocast {patch.attribute.partition('.')[0]} gives back autocast's dtype, as nn.Linear does",
        distribution=patch.distribution,
        requires=patch.requires,
        default=False,
        reports=("Dao-AILab/flash-attention#398", "axolotl-ai-cloud/axolotl#336"),
    )


LINEAR4BIT = _over(linear4bit.PATCH)
LORA_LINEAR4BIT = _over(lora.LINEAR4BIT)
