"""``peft.boundary``: the unquantized modules of a k-bit PEFT model take inputs of another floating dtype.

The modules are marked when PEFT has injected an adapter, or by ``guard``. A marked module gets a forward of its own, as
an instance attribute: the other objects of its class, ``nn.Linear`` above all, pay nothing. Torch's own layers have
their input cast to the weights and the result cast back. In a module of a model's own code, which may cast on purpose
before it multiplies, the one operation that torch refuses is mended instead (:class:`qlora_bf16_patch.modes.Fitted`).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import logging
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import BEFORE, Installation, beneath
from ..registry import Patch
from .injection import after_injection

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("qlora_bf16_patch")

# Plain attributes: they survive deepcopy, and a pickle of the model loads without this package.
MARK = "_qlora_bf16_patch_path"
_TOLD = "_qlora_bf16_patch_told"

# Modules in which an operation is refused though inputs and parameters of their own agree, so nothing at their boundary
# tells: products of activations from layers of different dtypes, float32's minimum as a mask of what is in half
# precision, a child's weight that is multiplied or clamped (transformers 5.23.0, found by `make sweep`).
_MENDED_ALWAYS = {
    f"transformers.models.{module}"
    for module in (
        "deberta.modeling_deberta.DisentangledSelfAttention",
        "deberta_v2.modeling_deberta_v2.DisentangledSelfAttention",
        "fsmt.modeling_fsmt.Attention",
        "gemma3n.modeling_gemma3n.Gemma3nTextDecoderLayer",
        "mamba.modeling_mamba.MambaMixer",
        "pegasus_x.modeling_pegasus_x.PegasusXAttention",
        "pegasus_x.modeling_pegasus_x.PegasusXEncoderLayer",
        "pegasus_x.modeling_pegasus_x.PegasusXGlobalLocalAttention",
        "yoso.modeling_yoso.YosoSelfAttention",
    )
}
# Those with an autograd.Function: its backward multiplies what autocast's forward saw in two dtypes, where no mode is.
_OWN_BACKWARD = {"transformers.models.yoso.modeling_yoso.YosoSelfAttention"}


def mark(model: torch.nn.Module, installation: Installation) -> bool:
    """Give each module of ``model`` that the patch is for its mark and its forward.

    Returns:
        False for a model that holds nothing quantized by bitsandbytes; it is left alone.
    """
    if not _quantized(model):
        return False
    # The adapters of a k-bit layer are cast by the layer's own patch, to its compute dtype.
    others = {part for module in model.modules() if _kbit(_base_layer(module)) for part in module.modules()}
    for path, module in model.named_modules():
        forward = None if module in others else _forward_for(module)
        if forward is None:
            continue
        installation.bind(module, forward(installation, type(module)))
        setattr(module, MARK, path)
    return True


def rebind_hooked(model: torch.nn.Module) -> None:
    """Let accelerate's hooks call the patched forward where they were attached before the patch.

    ``add_hook_to_module`` keeps the method that it found, so it bypasses a wrapper that is put on the class later.
    """
    for module in model.modules():
        kept, current = vars(module).get("_old_forward"), type(module).forward
        below = getattr(current, "__wrapped__", None)
        while below is not None:
            if getattr(kept, "__func__", None) is below:
                vars(module)["_old_forward"] = types.MethodType(current, module)
            below = getattr(below, "__wrapped__", None)


def _quantized(model: torch.nn.Module) -> bool:
    # The flags are transformers'; a layer of another class than nn.Linear (Falcon's) stays unquantized in such a model.
    if any(getattr(model, flag, False) for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit")):
        return True
    return any(_kbit(module) for module in model.modules())


def _kbit(module: Any) -> bool:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return isinstance(module, (Linear4bit, Linear8bitLt))


def _forward_for(module: torch.nn.Module) -> Callable[[Installation, type], Callable[..., Any]] | None:
    """What makes the module's forward, or None where torch takes every input as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    from ..dtypes import held

    cls: Any = type(module)
    if _kbit(module) or isinstance(module, BaseTunerLayer) or cls.forward is nn.Module.forward:
        return None
    if cls.forward is nn.Embedding.forward:
        return _token_ids
    weight = held(module, "weight")
    if weight is not None and _kind(cls):
        return _torchs_own if weight.is_floating_point() else None
    looks = any(_kbit(_base_layer(getattr(module, name, None))) for name in _looked_into(cls.forward))
    own = looks or _masks(cls.forward) or _path(cls) in _MENDED_ALWAYS or _matrices(module)
    return _models_own if own else None


@functools.cache
def _kind(cls: Any) -> str | None:
    """How torch treats mixed dtypes in this class' forward, if that is torch's own."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd

    kinds = {(nn.Linear, _ConvNd): "product", (nn.LayerNorm, nn.GroupNorm): "norm", (_BatchNorm,): "batch_norm"}
    own: Any = getattr(cls, "forward", None)
    if own.__module__.startswith("torch.nn.modules."):
        return next((kind for classes, kind in kinds.items() if issubclass(cls, classes)), None)
    return None


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def _looked_into(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the attributes whose ``weight.dtype`` or ``weight.data`` a forward reads.

    Of a k-bit layer these are its storage's: T5-like feed-forwards cast activations to ``self.wo.weight.dtype``.
    """
    code = getattr(inspect.unwrap(forward), "__code__", None)
    names = [step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_")] if code else []
    triples = zip(names, names[1:], names[2:], strict=False)
    return tuple({name for name, weight, what in triples if weight == "weight" and what in ("dtype", "data")})


@functools.cache
def _masks(forward: Callable[..., Any]) -> bool:
    """Whether a forward fills a mask with a dtype's minimum: that of its float32 hidden states overflows bfloat16."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and {"finfo", "masked_fill"} <= set(code.co_names)


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _matrices(module: torch.nn.Module) -> list[torch.Tensor]:
    """The floating parameters that the module's own code multiplies with.

    Vectors are scales and biases, which promote, unless products come after them in the same module (DeBERTa's biases
    of query and value).
    """
    children: Any = module._modules
    own = list(module._parameters.values())
    if "parametrizations" in children:  # PEFT's ParamWrapper
        own += [getattr(parametrized, "original", None) for parametrized in children["parametrizations"].values()]
    least = 1 if children else 2
    return [p for p in own if p is not None and p.dim() >= least and p.is_floating_point()]


def _tell(installation: Installation, self: Any, given: torch.dtype, weight: torch.dtype) -> None:
    import torch

    if installation.strict:
        raise TypeError(
            f"{vars(self)[MARK]} ({type(self).__name__}) computes in {weight} and was given {given} hidden states. "
            "peft.boundary would have cast them, but QLORA_BF16_PATCH_STRICT is set: cast them where they are made, or "
            "unset it."
        )
    if not torch.compiler.is_compiling() and _TOLD not in vars(self):
        setattr(self, _TOLD, True)
        logger.info("%s: %s hidden states are cast to its %s weights", vars(self)[MARK], given, weight)


@functools.cache
def _torchs_own(installation: Installation, cls: Any) -> Callable[..., Any]:
    """Linear, convolutions and normalizations: the input is cast to the weights, the result back."""
    import torch
    from torch import nn

    from ..dtypes import held, mixed_is_allowed

    kind, upstream = _kind(cls) or "product", cls.forward
    linear = upstream is nn.Linear.forward

    @functools.wraps(upstream)
    def forward(self: Any, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own, weight = self.__dict__, held(self, "weight")
        if not isinstance(input, torch.Tensor) or weight is None:
            return beneath(self, input, *args, **kwargs)
        if input.dtype is weight.dtype:
            parameters = own["_parameters"]
            plain = "bias" in parameters and BEFORE not in own and not args and not kwargs
            if linear and plain and type(self).forward is upstream:
                # nn.Linear.forward's one line. It spares two nn.Module.__getattr__, which pays for this wrapper.
                return nn.functional.linear(input, weight, parameters["bias"])
            return beneath(self, input, *args, **kwargs)
        if (
            not installation.on
            or not (input.is_floating_point() and weight.is_floating_point() and weight.dtype.itemsize > 1)
            or mixed_is_allowed(kind, input, weight.dtype)
        ):
            return beneath(self, input, *args, **kwargs)
        _tell(installation, self, input.dtype, weight.dtype)
        return beneath(self, input.to(weight.dtype), *args, **kwargs).to(input.dtype)

    return forward


@functools.cache
def _models_own(installation: Installation, cls: Any) -> Callable[..., Any]:
    """Routers, experts and whatever else a model's code multiplies: the operation that would raise is mended."""
    import torch

    from ..dtypes import floating, stand_in
    from ..modes import Fitted

    looked_into, always, own_backward = (
        _looked_into(cls.forward),
        _path(cls) in _MENDED_ALWAYS,
        _path(cls) in _OWN_BACKWARD,
    )

    def uncast(self: Any, given: list[torch.Tensor]) -> contextlib.AbstractContextManager[Any]:
        device = given[0].device.type if given else "cpu"
        if own_backward and self.training and given and given[0].dtype == torch.float32:
            return torch.autocast(device, enabled=False)
        return contextlib.nullcontext()

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return beneath(self, *args, **kwargs)
        storage = always or any(_kbit(_base_layer(getattr(self, name, None))) for name in looked_into)
        own, given = _matrices(self), list(floating((*args, *kwargs.values())))
        if not storage and len({tensor.dtype for tensor in own + given}) < 2:
            return beneath(self, *args, **kwargs)

        def mended(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            fitted = Fitted(own[0].dtype if own else None, functools.partial(_tell, installation, self), storage)
            with fitted, uncast(self, given):
                return run(*args, **kwargs)

        layer = self
        if self.training and getattr(self, "gradient_checkpointing", False) and BEFORE not in vars(self):
            # transformers checkpoints inside of a layer's forward (modeling_layers.py, GradientCheckpointingLayer):
            # what the backward runs again must be mended as well.
            checkpoint = self._gradient_checkpointing_func
            again = functools.partial(_checkpointed, checkpoint, mended)
            layer = stand_in(self, _gradient_checkpointing_func=again)
        return mended(beneath, layer, *args, **kwargs)

    return forward


def _checkpointed(checkpoint: Callable[..., Any], mended: Callable[..., Any], run: Any, *args: Any, **kw: Any) -> Any:
    return checkpoint(functools.partial(mended, run), *args, **kw)


@functools.cache
def _token_ids(installation: Installation, cls: Any) -> Callable[..., Any]:
    import torch

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs.get("input")
        if installation.on and isinstance(ids, torch.Tensor) and ids.is_floating_point():
            raise TypeError(
                f"{vars(self)[MARK]} ({type(self).__name__}) was given {ids.dtype} token ids of shape "
                f"{tuple(ids.shape)}. Somebody cast input_ids along with the activations, and bfloat16 rounds whole "
                "numbers above 256. Leave input_ids integers; qlora_bf16_patch makes casts of the inputs needless."
            )
        return beneath(self, *args, **kwargs)

    return forward


PATCH = Patch(
    name="peft.boundary",
    # Not peft.tuners.lora.bnb: that is imported inside the first injection, too late to see it.
    module="peft.tuners.tuners_utils",
    attribute="BaseTuner.inject_adapter",
    load=after_injection(mark),
    summary="lm_head, heads, norms, routers and experts of a k-bit model take inputs of another floating dtype",
    distribution="peft",
    requires=">=0.6",
    reports=("huggingface/peft#1515", "huggingface/trl#1202"),
)
