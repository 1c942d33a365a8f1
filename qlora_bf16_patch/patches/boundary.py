"""``peft.boundary``: the unquantized modules of a k-bit PEFT model take inputs of another floating dtype."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation
from ..registry import Patch

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("qlora_bf16_patch")

# A plain attribute: it survives deepcopy, and a pickle of the model loads without this package.
MARK = "_qlora_bf16_patch_path"


def mark(model: torch.nn.Module, installation: Installation) -> int:
    """Mark the modules of ``model`` that hold floating matrices of their own, and wrap their classes' forward.

    Returns:
        The number of marked modules; 0 for a model without a bitsandbytes layer.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from torch.nn import Embedding

    kbit = (Linear4bit, Linear8bitLt)
    if not any(isinstance(module, kbit) for module in model.modules()):
        return 0
    marked = 0
    for path, module in model.named_modules():
        if isinstance(module, (*kbit, Embedding)) or weight_dtype(module) is None:
            continue
        setattr(module, MARK, path)
        installation.wrap(type(module), "forward", _aligner())
        marked += 1
    return marked


def weight_dtype(module: Any) -> torch.dtype | None:
    """The dtype that torch insists on for the module's input, or None where torch promotes.

    Matrices go to matmuls, which refuse another dtype; a lone vector is a scale that promotes, except in torch's own
    normalizations.
    """
    from torch.nn import GroupNorm, LayerNorm
    from torch.nn.modules.batchnorm import _BatchNorm

    least = 1 if isinstance(module, (LayerNorm, GroupNorm, _BatchNorm)) else 2
    own = list(module._parameters.values())
    for parametrized in getattr(module, "parametrizations", {}).values():  # PEFT's ParamWrapper
        own.append(getattr(parametrized, "original", None))
    for parameter in own:
        if parameter is not None and parameter.dim() >= least and parameter.dtype.is_floating_point:
            return parameter.dtype  # type: ignore[no-any-return]
    return None


def _aligner() -> Factory:
    import functools

    import torch
    from torch.nn import GroupNorm, LayerNorm

    def would_raise(module: Any, dtype: torch.dtype, x: torch.Tensor) -> bool:
        if x.device.type == "cpu" and isinstance(module, (LayerNorm, GroupNorm)):
            # Autocast leaves them alone on CPU; there, half inputs with fp32 weights are allowed (mixed dtype).
            return dtype != torch.float32
        return not torch.is_autocast_enabled(x.device.type)

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not installation.on or MARK not in self.__dict__ or not args or not isinstance(args[0], torch.Tensor):
                return original(self, *args, **kwargs)
            x = args[0]
            dtype = weight_dtype(self)
            if dtype is None or x.dtype == dtype or not x.dtype.is_floating_point or not would_raise(self, dtype, x):
                return original(self, *args, **kwargs)
            if installation.strict:
                raise TypeError(
                    f"{self.__dict__[MARK]} ({type(self).__name__}) holds {dtype} weights and was given {x.dtype} "
                    "hidden states; peft.boundary would have cast them, but QLORA_BF16_PATCH_STRICT is set."
                )
            _tell(self, x.dtype, dtype)
            cast = [a.to(dtype) if isinstance(a, torch.Tensor) and a.dtype == x.dtype else a for a in args]
            result = original(self, *cast, **kwargs)
            if isinstance(result, torch.Tensor) and result.dtype == dtype:
                return result.to(x.dtype)
            return result

        return forward

    return factory


def _tell(module: Any, given: torch.dtype, weight: torch.dtype) -> None:
    import torch

    told = MARK + "_told"
    if torch.compiler.is_compiling() or told in module.__dict__:
        return
    setattr(module, told, True)
    logger.info("%s: %s hidden states are cast to its %s weights", module.__dict__[MARK], given, weight)


def _load() -> Factory:
    import functools

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def inject_adapter(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, model, *args, **kwargs)
            if installation.on:
                mark(model, installation)
            return result

        return inject_adapter

    return factory


PATCH = Patch(
    name="peft.boundary",
    # Not peft.tuners.lora.bnb: that is imported inside the first injection, too late to see it.
    module="peft.tuners.tuners_utils",
    attribute="BaseTuner.inject_adapter",
    load=_load,
    summary="lm_head, heads, routers and experts of a k-bit model take inputs of another floating dtype",
    distribution="peft",
    requires=">=0.6",
    reports=("huggingface/peft#1515", "huggingface/trl#1202"),
)
