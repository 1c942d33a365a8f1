"""bitsandbytes' layers: which they are, what they compute in, what their forwards write to."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import torch
from packaging.version import Version

from ..numerics.compiling import source_of
from ..numerics.dtypes import HALF, SOURCE
from ..numerics.overlay import overlay
from .as_written import note_written

_RELEASE = Version(importlib.metadata.version("bitsandbytes"))
# Linear4bit.forward compares its bias with the input after that was cast to the compute dtype, before 0.50 as it came.
CASTS_FIRST = _RELEASE >= Version("0.50")
# matmul_4bit writes the input's dtype to the quant state on a CPU, and so into the state dict. The backward, and PEFT's
# methods that dequantize, read it there.
OVERWRITES_QUANT_STATE = Version("0.48") <= _RELEASE < Version("0.50")


def kbit_classes() -> tuple[type, ...]:
    """The classes of 4- and 8-bit layers; none while bitsandbytes is not imported, and no model can have one."""
    return _classes("Linear4bit", "Linear8bitLt")


def is_kbit(module: Any) -> bool:
    """Whether it is a 4- or 8-bit layer. Not isinstance: that may ask the object, and run code of others."""
    return issubclass(type(module), kbit_classes())


def is_4bit(module: Any) -> bool:
    return is_kbit(module) and hasattr(module, "compute_dtype")


def is_kbit_model(model: torch.nn.Module) -> bool:
    """Whether transformers loaded it in 4 or 8 bits, or it holds a quantized layer."""
    # A layer of another class than nn.Linear (Falcon's) stays unquantized in a model that has the flag.
    if any(getattr(model, flag, False) for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit")):
        return True
    return any(is_kbit(module) for module in model.modules())


def is_kbit_weight(value: Any) -> bool:
    """Whether a tensor is the packed weight of a 4- or 8-bit layer, whatever dtype it is stored in."""
    return isinstance(value, _classes("Params4bit", "Int8Params"))


def _classes(*names: str) -> tuple[type, ...]:
    library: Any = sys.modules.get("bitsandbytes.nn")
    return tuple(cls for name in names if (cls := getattr(library, name, None)) is not None)


def activations(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a k-bit layer was given; it computes garbage from integers, silently on some paths.

    Returns:
        ``x``, or the floating tensor that was cast to it, where a mode saw it.

    Raises:
        TypeError: ``x`` is not floating.
    """
    if x.is_floating_point():
        return x
    source = source_of(x) if torch.compiler.is_compiling() else None
    if source is not None:
        return source
    base: Any = layer
    base = unwrapped(base.get_base_layer()) if hasattr(base, "get_base_layer") else base
    if not torch.compiler.is_compiling() and SOURCE in x.__dict__:
        source, taken = x.__dict__[SOURCE]
        dtype = getattr(getattr(base.weight, "quant_state", None), "dtype", torch.float32)
        taken(x.dtype, dtype)
        return source.to(dtype)  # type: ignore[no-any-return]
    configured = getattr(base, "compute_dtype", None)
    wanted = f"the layer's compute_dtype ({configured})" if configured else "a floating dtype"
    raise TypeError(
        f"{type(layer).__name__} was given a {x.dtype} tensor of shape {tuple(x.shape)}: its caller cast the "
        f"activations to the weight's storage dtype, which destroys them. Cast to {wanted} instead."
    )


def compute_dtype(layer: Any, x: torch.Tensor) -> torch.dtype:
    """What a k-bit layer, or an adapter on one, computes in: what was configured, else the input's dtype.

    bitsandbytes' 8-bit layers have nothing to configure.
    """
    base = layer.__dict__["_modules"].get("base_layer")
    if base is not None and "base_layer" in base.__dict__["_modules"]:
        base = layer.get_base_layer()  # an adapter on an adapter
    if base is not None and base.__dict__["_modules"]:
        base = unwrapped(base)
    return (layer if base is None else base).__dict__.get("compute_dtype") or x.dtype


def unwrapped(base: Any) -> Any:
    """The k-bit layer in what an engine has put around it; ``base`` itself where there is none.

    FSDP1, activation checkpointing and torch.compile replace a module by one whose only child it is.
    """
    module = base
    while not is_kbit(module):
        # FSDP1's flat parameter stands in what it wraps. What has a parameter of its own is adapted for that one.
        if len(module._modules) != 1 or module._parameters.keys() - {"_flat_param"}:
            return base
        (module,) = module._modules.values()
    return module


def bias_of(layer: Any) -> torch.Tensor | None:
    """The bias, also where it is no parameter: FSDP's view into its flat one.

    ``nn.Module.__getattr__`` costs as much as a small operation, and is left out where it can be.
    """
    own = layer._parameters
    return own["bias"] if "bias" in own else getattr(layer, "bias", None)


def untouched(layer: Any, dtype: torch.dtype, *, repacks: bool = False, dequantized: torch.dtype | None = None) -> Any:
    """The layer, or an overlay where upstream's forward would write to a parameter.

    Every release of bitsandbytes up to 0.50.2 writes ``bias.data = bias.data.to(x.dtype)`` in its forwards, which
    rounds a trained bias for good. Here upstream's forward finds one that fits, and has nothing to write.

    Args:
        layer: a k-bit layer.
        dtype: what upstream's forward would cast the bias to.
        repacks: whether it would repack the weight, see :func:`repacks_weights`.
        dequantized: what it would write to the quant state, see :func:`overwrites_quant_state`.
    """
    attributes: dict[str, Any] = {}
    if repacks and layer.support_avx512bf16_for_cpu:
        attributes["support_avx512bf16_for_cpu"] = False
    own: dict[str, Any] = {}
    bias = bias_of(layer)
    if bias is not None and bias.dtype != dtype:
        own["bias"] = bias.to(dtype)
    if dequantized is not None:
        own["weight"] = _with_own_state(layer.weight)
    if own and not torch.compiler.is_compiling():
        note_written(bias, own.get("bias"), dequantized)
    attributes |= _with(layer, own)
    return overlay(layer, **attributes) if attributes else layer


def _with(layer: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What to change in an overlay of ``layer``, so that it has these tensors."""
    # A plain attribute: FSDP's view into its flat parameter, a pruned one.
    plain = {name: value for name, value in tensors.items() if name in layer.__dict__}
    parameters = {name: value for name, value in tensors.items() if name not in plain}
    return plain | ({"_parameters": {**layer._parameters, **parameters}} if parameters else {})


def _with_own_state(weight: Any) -> Any:
    """The packed weight with a quant state of its own, which shares the scales."""
    # Not copy.copy: it writes `.data`, which inference mode refuses. `detach` alone gives a plain tensor.
    own: Any = torch.Tensor._make_subclass(type(weight), weight.detach())
    own.__dict__.update(weight.__dict__, quant_state=overlay(weight.quant_state))
    return own


def repacks_weights(forward: Any) -> bool:
    """Whether ``Linear4bit.forward`` repacks its weight on CPUs with AVX512-bf16, in evaluation.

    It does from 0.49 on (``_convert_weight_packed_for_cpu``): the quantization's scales are rounded to bfloat16 for
    good, and the result has no gradient.
    """
    return "support_avx512bf16_for_cpu" in getattr(getattr(forward, "__code__", None), "co_names", ())


def overwrites_quant_state(x: torch.Tensor) -> bool:
    """Whether a product with ``x`` writes to the quant state: see :data:`OVERWRITES_QUANT_STATE`."""
    return OVERWRITES_QUANT_STATE and x.device.type == "cpu"


_FLOAT32_COMPUTE = (
    "4-bit layers compute in float32 though {why}: BitsAndBytesConfig's default. If you did not mean that, set "
    "bnb_4bit_compute_dtype to bfloat16, in BitsAndBytesConfig or among lm_eval's --model_args, or --dtype bfloat16 in "
    "TRL."
)


def left_at_float32(layer: Any, given: torch.dtype | None = None) -> str | None:
    """The warning about a compute dtype that was left at float32, where it applies to a 4-bit layer.

    Args:
        layer: a 4-bit layer.
        given: dtype of its activations; None before there are any.
    """
    if layer.compute_dtype != torch.float32:
        return None
    if given in HALF:
        return _FLOAT32_COMPUTE.format(why=f"they are given {given} hidden states")
    stored = getattr(getattr(layer._parameters.get("weight"), "quant_state", None), "dtype", None)
    if given is None and stored in HALF:
        return _FLOAT32_COMPUTE.format(why=f"their weights were quantized from {stored}")
    return None
