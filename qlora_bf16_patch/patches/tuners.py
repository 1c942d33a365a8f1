"""``peft.tuners``: PEFT's other methods on k-bit layers compute in the compute dtype and give back the input's dtype.

Which methods there are, and on which of their classes, is not listed here: every tuner layer around a k-bit layer gets
the forward when PEFT has injected it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Installation, beneath
from ..registry import Patch
from . import lora
from .injection import after_injection

if TYPE_CHECKING:
    import torch

_OTHERS = {(lora.LINEAR4BIT.module, lora.LINEAR4BIT.attribute), (lora.LINEAR8BIT.module, lora.LINEAR8BIT.attribute)}

# An autograd.Function whose backward multiplies what its forward saw: autocast would give it two dtypes (LoHa fails in
# a training step under autocast; peft 0.21.2, HadaWeight).
_OWN_BACKWARD = {"peft.tuners.loha.layer"}


def mark(model: torch.nn.Module, installation: Installation) -> None:
    """Give each tuner layer of ``model`` whose base layer is quantized its forward."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or not isinstance(
            module.get_base_layer(), (Linear4bit, Linear8bitLt)
        ):
            continue
        cls: Any = type(module)
        if (cls.__module__, f"{cls.__qualname__}.forward") not in _OTHERS:
            installation.bind(module, _forward(installation, cls))


@functools.cache
def _forward(installation: Installation, cls: Any) -> Callable[..., Any]:
    import torch

    from ..dtypes import HALF, autocast_is_on, compute_dtype, refuse_integers
    from ..modes import Fitted, region

    nothing = contextlib.nullcontext()

    def mixes(layer: Any, dtype: torch.dtype) -> bool:
        """Whether an adapter is in a dtype that the layer's region would not cast: autocast casts float32 alone."""
        for name in layer.adapter_layer_names:
            container = layer._modules.get(name)
            for holder in (container, *container._modules.values()) if container is not None else ():
                for value in holder._parameters.values():
                    if value is not None and value.dtype is not dtype and value.dtype is not torch.float32:
                        return True
        return False

    own_backward = cls.__module__ in _OWN_BACKWARD

    @functools.wraps(cls.forward)
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return beneath(self, x, *args, **kwargs)
        refuse_integers(self, x)
        dtype, device = compute_dtype(self, x), x.device.type
        in_force = torch.get_autocast_dtype(device) if autocast_is_on(device) else dtype
        within: contextlib.AbstractContextManager[Any] = nothing
        if own_backward:
            within = torch.autocast(device, enabled=False)
        elif dtype in HALF:
            within = region(device, dtype)
        # What the region leaves alone, and torch refuses, is mended.
        left = mixes(self, in_force) or (dtype not in HALF and x.dtype != dtype)
        with within, Fitted(dtype, lambda *_: None) if left else nothing:
            result = beneath(self, x, *args, **kwargs)
        return result if result.dtype is x.dtype else result.to(x.dtype)

    return forward


PATCH = Patch(
    name="peft.tuners",
    module="peft.tuners.tuners_utils",
    attribute="BaseTuner.inject_adapter",
    load=after_injection(mark),
    summary="PEFT's other methods on 4- and 8-bit layers compute in the compute dtype and give back the input's",
    distribution="peft",
    requires=">=0.6",
)
