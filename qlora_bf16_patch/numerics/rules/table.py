"""Operations that are computed in another dtype than the widest, or whose refusals Dynamo has to foresee."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..dtypes import HALF, autocast_is_on, cast, first, floating
from .rule import Args, Dtypes, Kwargs, Rule, Tensors, widest

_F = nn.functional
_T = torch.Tensor
_ATTENTION = ("query", "key", "value", "attn_mask")
_STATISTICS = ("running_mean", "running_var")


def operand(args: Args, kwargs: Kwargs, at: int, name: str) -> Any:
    """The operand that torch's signature has at a position, under a name."""
    return args[at] if len(args) > at else kwargs.get(name)


def found(*names: str) -> Iterator[Any]:
    """The functions of a name in torch, in its Tensor, in torch.nn.functional and torch.linalg: releases differ."""
    for name in names:
        for place in (torch, torch.Tensor, nn.functional, torch.linalg):
            function = getattr(place, name, None)
            if callable(function):
                yield function


def first_operand(func: Any, operands: Tensors) -> Dtypes:
    """The first operand's dtype, for operations that write to it."""
    return operands[0].dtype, operands[0].dtype


def joined(func: Any, operands: Tensors) -> Dtypes:
    """The widest dtype, for the result as well. Autocast refuses a half precision that is not its own."""
    dtype, device = widest(func, operands)[0], operands[0].device.type
    if dtype in HALF and autocast_is_on(device):
        dtype = torch.get_autocast_dtype(device)
    return dtype, dtype


def activations(func: Any, operands: Tensors) -> Dtypes:
    """A parameter's dtype, else autocast's or the half precision; and that of the first that is no parameter."""
    given = first((tensor for tensor in operands if not isinstance(tensor, nn.Parameter)), operands[0]).dtype
    parameter = first(tensor for tensor in operands if isinstance(tensor, nn.Parameter))
    if parameter is not None:
        return parameter.dtype, given
    if autocast_is_on(operands[0].device.type):
        return torch.get_autocast_dtype(operands[0].device.type), given
    return first((half for half in HALF if any(tensor.dtype == half for tensor in operands)), torch.float32), given


def mixed(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether floating operands differ in dtype."""
    dtypes = [tensor.dtype for tensor in floating((*args, *kwargs.values()))]
    return any(dtype != dtypes[0] for dtype in dtypes)


def mixed_outside_autocast(func: Any, args: Args, kwargs: Kwargs) -> bool:
    device = device_of(args, kwargs)
    return device is not None and not autocast_is_on(device) and mixed(func, args, kwargs)


def cast_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """What CUDA's autocast casts by itself, and the CPU's leaves alone (torch 2.13.0, ATen/autocast_mode.h)."""
    return mixed(func, args, kwargs) and not autocast_is_on_a_gpu(args, kwargs)


def promoted_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """What CUDA's autocast promotes as the CPU's does a join, and the CPU's leaves alone (the same)."""
    return mixed(func, args, kwargs) and (not autocast_is_on_a_gpu(args, kwargs) or not_autocasts(func, args, kwargs))


def autocast_is_on_a_gpu(args: Args, kwargs: Kwargs) -> bool:
    device = device_of(args, kwargs)
    return device not in (None, "cpu") and autocast_is_on(device)


def device_of(args: Args, kwargs: Kwargs) -> Any:
    """The type of the device of the first floating operand; None where there is none."""
    tensor = first(floating((*args, *kwargs.values())))
    return None if tensor is None else tensor.device.type


def not_autocasts(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Autocast refuses to join a half precision that is not its own, unless something in float32 stands before it."""
    tensors = [*floating((*args, *kwargs.values()))]
    if not tensors or not autocast_is_on(tensors[0].device.type):
        return False
    own = torch.get_autocast_dtype(tensors[0].device.type)
    unusual = (t.dtype for t in tensors if t.dtype in (torch.float32, *HALF) and t.dtype != own)
    return bool(first(unusual, torch.float32) != torch.float32)


def _added(func: Any, operands: Tensors) -> Dtypes:
    """The first operand is added to the product."""
    return activations(func, operands)[0], activations(func, operands[1:])[1]


def _added_on_gpus(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """CUDA casts the addend by itself (seen with torch 2.11 on an H200)."""
    if device_of(args, kwargs) != "cpu":  # pragma: no cover: on a GPU
        return cast_on_gpus(func, [operand(args, kwargs, at, name) for at, name in ((1, "mat"), (2, "vec"))], {})
    return cast_on_gpus(func, args, kwargs)


def _of_vectors(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """A product with a single number promotes."""
    return promoted_on_gpus(func, args, kwargs) and all(tensor.dim() for tensor in floating((*args, *kwargs.values())))


def _contracts(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether an einsum is a matrix product; an elementwise one promotes, and so does a sum over a size of one."""
    equation, *operands = args
    inputs, arrow, output = equation.replace(" ", "").partition("->") if isinstance(equation, str) else ("", "", "")
    summed = set(inputs) - set(output) - {","}
    if not mixed_outside_autocast(func, args, kwargs):
        return False
    if not arrow or "..." in inputs or not all(isinstance(operand, torch.Tensor) for operand in operands):
        return not arrow or bool(summed)
    sizes = zip(inputs.replace(",", ""), (size for operand in operands for size in operand.shape), strict=False)
    return any(size > 1 for letter, size in sizes if letter in summed)


def _bilinear(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """CUDA's autocast asks its factors alone, and not its bias."""
    factors = [operand(args, kwargs, at, name) for at, name in enumerate(("input1", "input2", "weight"))]
    return mixed(func, args, kwargs) and (not autocast_is_on_a_gpu(args, kwargs) or not_autocasts(func, factors, {}))


def _differ(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Torch takes all of them under autocast, and a mask of booleans or of float32 with every query."""
    query, key, value, mask = (operand(args, kwargs, at, name) for at, name in enumerate(_ATTENTION))
    if query.is_meta or autocast_is_on(query.device.type):
        return False
    masks = (torch.bool, torch.float32, query.dtype)
    return not query.dtype == key.dtype == value.dtype or (mask is not None and mask.dtype not in masks)


def _halves(func: Any, operands: Tensors) -> Dtypes:
    query, key, value, *_ = operands
    common = first((tensor.dtype for tensor in (value, key, query) if tensor.dtype in HALF), query.dtype)
    return common, query.dtype


def _mask_apart(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    """A mask's least number stays one: a cast would make -inf of that of a wider dtype, and NaN of a row of them.

    Torch lets a float32 mask stand beside any query, but cuDNN takes its bytes for the query's dtype (pytorch#191612,
    seen with torch 2.11 on an H200), and the memory-efficient kernel refuses it.
    """
    result = cast(dtype, value)
    if at not in (3, "attn_mask") or result is value:
        return result
    limits = torch.finfo(dtype)
    return torch.where(value.isinf(), result, result.clamp(limits.min, limits.max))


def _projected(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """By query, key, value and the weights alone; of biases and a mask torch takes some, by the path that it goes."""
    places = ((0, "query"), (1, "key"), (2, "value"), (5, "in_proj_weight"), (11, "out_proj_weight"))
    return mixed_outside_autocast(func, [operand(args, kwargs, at, name) for at, name in places], {})


def _norm(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """On CPU a normalization takes half precision with float32 for all the rest, on CUDA batch norm alone does.

    Autocast casts the other ones there, and an instance norm's mean may have any dtype (torch 2.13.0).
    """
    if func is _F.instance_norm:
        args, kwargs = [*args[:1], *args[2:]], {name: kwargs[name] for name in kwargs if name != "running_mean"}
    if not mixed(func, args, kwargs):
        return False
    x, *others = floating((*args, *kwargs.values()))
    if x.device.type != "cpu" and func in (_F.layer_norm, _F.group_norm):  # pragma: no cover: on a GPU
        return not autocast_is_on(x.device.type)
    return x.dtype not in HALF or any(other.dtype != torch.float32 for other in others)


def _of_classes(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Targets that are probabilities are multiplied with the weights, which promotes."""
    target = operand(args, kwargs, 1, "target")
    return not target.is_floating_point() and mixed_outside_autocast(func, args, kwargs)


def _sampled(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """The CPU's autocast computes in float32, and CUDA's promotes (torch 2.13.0, ATen/autocast_mode.h)."""
    on_cpu = device_of(args, kwargs) == "cpu"
    return mixed_outside_autocast(func, args, kwargs) if on_cpu else promoted_on_gpus(func, args, kwargs)


def _updated(
    start: int, flag: str, default: bool, args: Args, kwargs: Kwargs
) -> Sequence[tuple[int | str, torch.Tensor]]:
    """The running statistics, whose first one stands there: they are updated in their own dtype.

    It may be another than the weights': PEFT's preparation casts parameters and leaves buffers.
    """
    if not (args[5] if len(args) > 5 else kwargs.get(flag, default)):
        return ()
    places = [at if len(args) > at else name for at, name in enumerate(_STATISTICS, start)]
    tensors = [args[at] if isinstance(at, int) else kwargs.get(at) for at in places]
    return [(at, tensor) for at, tensor in zip(places, tensors, strict=True) if tensor is not None]


def _writes_to_an_index(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """``x[index] = source`` with slices alone is a copy, which casts by itself."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(item, (torch.Tensor, list)) for item in index) and mixed(func, (args[0], args[2]), {})


def _joins(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """Autocast has a say in it on CPU alone, and without it torch joins all dtypes."""
    return device_of(args, kwargs) == "cpu" and not_autocasts(func, args, kwargs)


def _copies(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """On CPU autocast casts the operands of an ``index_copy`` as it does those of a join (torch 2.13.0)."""
    if device_of(args, kwargs) not in (None, "cpu"):  # pragma: no cover: on a GPU
        return mixed(func, args, kwargs)
    return mixed_outside_autocast(func, args, kwargs) or not_autocasts(func, args, kwargs)


def _copied(func: Any, operands: Tensors) -> Dtypes:
    return joined(func, operands)[0], operands[0].dtype


def _overflow(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """float32's minimum, made for a mask in float32, does not fit what is in half precision: its own limit does."""
    if not args or not isinstance(args[0], torch.Tensor) or args[0].dtype not in HALF:
        return False
    return any(_limited(args[0].dtype, 0, value) is not value for value in (*args, *kwargs.values()))


def _limited(dtype: torch.dtype, at: int | str, value: Any) -> Any:
    overflows = isinstance(value, float) and torch.finfo(dtype).max < abs(value) < math.inf
    return math.copysign(torch.finfo(dtype).max, value) if overflows else value


# What autocast casts by itself (measured on torch 2.13.0), and what it leaves alone; of sums, the first is the addend.
LINEAR = {_F.linear}
_CAST = {*found("matmul", "mm", "bmm", "vecdot"), _T.__matmul__, _T.__rmatmul__}
_CAST_ON_GPUS, _PROMOTED_ON_GPUS = {*found("mv", "multi_dot", "chain_matmul")}, {*found("dot", "vdot", "tensordot")}
_LEFT = {*found("_grouped_mm", "grouped_mm")}
_SUMS_CAST, _SUMS_CAST_ON_GPUS = {*found("addmm", "addbmm", "baddbmm")}, {*found("addmv")}
PRODUCTS: set[Any] = {*_CAST, *_CAST_ON_GPUS, *_PROMOTED_ON_GPUS, *_LEFT, *_SUMS_CAST, *_SUMS_CAST_ON_GPUS}
PRODUCTS |= {*found("bilinear", "inner", "addr"), torch.einsum}
_CONVOLUTIONS = (f"{name}{n}d" for n in (1, 2, 3) for name in ("conv", "conv_transpose"))
_RECURRENT = [f"{name}{cell}" for name in ("rnn_tanh", "rnn_relu", "lstm", "gru") for cell in ("", "_cell")]
_FUSED = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "linear_cross_entropy")
_in_layer = functools.partial(_updated, 1)
# Torch's own, of another order; the last one has no flag, and always updates.
_IN_C = ("batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")
_PROMOTED = ["index_put", "scatter_add"]  # those in place are not
_WRITES = [f"index_{name}" for name in ("add", "reduce")]
_WRITES += ["scatter", "scatter_reduce", "masked_scatter", "put"]
_IN_PLACE = [f"{name}_" for name in (*_WRITES, *_PROMOTED, "index_copy", "lerp", "addmm", "addbmm", "baddbmm", "addmv")]
_JOINS = ("hstack", "vstack", "dstack", "column_stack", "row_stack", "meshgrid", "cartesian_prod")
RULES: dict[Any, Rule] = {
    # Products: computed in a parameter's dtype, else in a half precision, as by autocast.
    **dict.fromkeys((*LINEAR, *_CAST), Rule(mixed_outside_autocast, activations)),
    **dict.fromkeys(_CAST_ON_GPUS, Rule(cast_on_gpus, activations)),
    **dict.fromkeys(_PROMOTED_ON_GPUS, Rule(promoted_on_gpus, activations)),
    **dict.fromkeys(_LEFT, Rule(mixed, activations)),
    **dict.fromkeys(_SUMS_CAST, Rule(mixed_outside_autocast, _added)),
    **dict.fromkeys(_SUMS_CAST_ON_GPUS, Rule(_added_on_gpus, _added)),
    **dict.fromkeys(found("bilinear"), Rule(_bilinear, activations)),
    **dict.fromkeys(found("inner"), Rule(_of_vectors, activations)),
    **dict.fromkeys(found("addr"), Rule(dtypes=_added)),
    torch.einsum: Rule(_contracts, activations),
    _F.scaled_dot_product_attention: Rule(_differ, _halves, _mask_apart),
    _F.multi_head_attention_forward: Rule(_projected, activations),
    # Layers: torch computes with several operands in one call, and no function mode sees the products in it.
    **dict.fromkeys(found("prelu", *_CONVOLUTIONS), Rule(mixed_outside_autocast, activations)),
    **dict.fromkeys((_F.layer_norm, _F.group_norm), Rule(_norm)),
    _F.batch_norm: Rule(_norm, written=functools.partial(_in_layer, "training", False)),
    _F.instance_norm: Rule(_norm, written=functools.partial(_in_layer, "use_input_stats", True)),
    **dict.fromkeys(
        (getattr(torch, name) for name in _IN_C if hasattr(torch, name)),
        Rule(_norm, written=functools.partial(_updated, 3, "training", True)),
    ),
    **dict.fromkeys(found(*_RECURRENT, *_FUSED), Rule(dtypes=activations)),
    **dict.fromkeys(found("grid_sample", "grid_sampler"), Rule(_sampled)),
    **dict.fromkeys((_F.cross_entropy, _F.nll_loss), Rule(_of_classes)),
    **dict.fromkeys(found("lerp"), Rule(mixed)),
    **dict.fromkeys((torch.cross, _T.cross), Rule(promoted_on_gpus)),
    torch.linalg.cross: Rule(mixed),
    _F.embedding_bag: Rule(mixed, first_operand),  # a table is not copied to float32 for the weights of some rows
    # Operations that write into a tensor, or that join tensors.
    **dict.fromkeys(found(*_WRITES), Rule(mixed, first_operand)),
    **dict.fromkeys(found(*_PROMOTED), Rule(promoted_on_gpus, first_operand)),
    **dict.fromkeys(found("index_copy"), Rule(_copies, _copied)),
    **dict.fromkeys(found(*_IN_PLACE), Rule(mixed, first_operand, in_place=True)),
    _T.__setitem__: Rule(_writes_to_an_index, first_operand, in_place=True),
    **dict.fromkeys(found("cat", "concat", "concatenate", "stack"), Rule(_joins, joined)),
    **dict.fromkeys(found(*_JOINS), Rule(dtypes=joined)),
    **dict.fromkeys(found("masked_fill", "pad"), Rule(_overflow, first_operand, _limited)),
    **dict.fromkeys(found("masked_fill_"), Rule(_overflow, first_operand, _limited, in_place=True)),
}
ASKED_FIRST = frozenset(func for func, rule in RULES.items() if rule.written is not None)
_ANY, _WRITES_IN_PLACE = Rule(), Rule(dtypes=first_operand, in_place=True)


def rule_of(func: Any) -> Rule:
    """The rule of an operation; whether it works in place its name tells."""
    name = getattr(func, "__name__", "")
    return RULES.get(func) or (_WRITES_IN_PLACE if name[-1:] == "_" != name[-2:-1] or name[:3] == "__i" else _ANY)
