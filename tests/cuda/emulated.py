"""A CUDA device emulated on the CPU, to see CUDA's autocast and CUDA's dtype rules without a GPU.

A tensor is a wrapper that says ``cuda:0`` and holds CPU data. Torch's dispatcher applies CUDA's autocast and autograd
to it as to a real one, and bitsandbytes and PEFT take their branches for CUDA; what is left is computed on the CPU. So
dtypes, errors and branches such as ``x.is_cuda`` are CUDA's; speed, kernels and rounding are the CPU's.

What it does not show: operations that mix a tensor of the CPU with one of the device are let through, and
``type(parameter)`` is not ``torch.nn.Parameter`` (``isinstance`` and ``__class__`` are as on a real device).

Import this before torch, in a process of its own: a part of ``torch.cuda`` is replaced.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from . import build

build.load()

import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

_aten = torch.ops.aten
# CUDA's normalizations take no input of another dtype than the weight's; the CPU's do. By operation, where both stand.
_NORMS = {_aten.native_layer_norm.default: (0, 2), _aten.native_group_norm.default: (0, 1)}
# CUDA's kernels cast a half precision to float32 on their way; the CPU's refuse.
_SOFTMAXES = {_aten._softmax.default, _aten._log_softmax.default}
_METADATA = {"_held", "_class"}


class Emulated(torch.Tensor):
    """A CPU tensor that says it is on ``cuda:0``."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    _held: torch.Tensor
    _class: type | None

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Emulated:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device="cuda:0",
            requires_grad=False,
        )

    def __init__(self, data: torch.Tensor) -> None:
        self._held = data
        self._class = None

    @property
    def __class__(self) -> type:
        """A quantized parameter's own class: PEFT asks for its name, and others with isinstance."""
        return vars(self).get("_class") or type(self)

    @property
    def cpu_data(self) -> torch.Tensor:
        return self._held

    @property
    def data(self) -> Emulated:
        return Emulated(self._held)

    @data.setter
    def data(self, value: Emulated) -> None:
        torch.Tensor.data.__set__(self, value)
        self._held = value._held

    def tolist(self) -> Any:
        return self._held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.Tensor.__getitem__(self, _indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _indices(index), value)

    def __repr__(self, **_: Any) -> str:
        return f"Emulated({self._held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _like(self, self._held.detach().clone(), lambda value: copy.deepcopy(value, memo))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _like(tensor: torch.Tensor, data: torch.Tensor, taken: Any) -> Any:
    """``data`` on the device as what ``tensor`` is: a parameter, a quantized one, with all of its attributes."""
    other: Any = Emulated(data)
    if isinstance(tensor, torch.nn.Parameter):
        other = torch.nn.Parameter(other, requires_grad=tensor.requires_grad)
        other._held, other._class = data, tensor.__class__
    else:
        other.requires_grad_(tensor.requires_grad)
    for name, value in vars(tensor).items():
        if name not in _METADATA:
            setattr(other, name, taken(value))
    return other


def _indices(index: Any) -> Any:
    """Lists as indices become a CPU's tensors beneath the dispatcher, which then misses the device."""
    if isinstance(index, tuple):
        return tuple(_indices(item) for item in index)
    return Emulated(torch.tensor(index)) if isinstance(index, list) else index


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func in _NORMS:
        x, weight = (args[i] for i in _NORMS[func])
        if weight is not None and weight.dtype != x.dtype:
            raise RuntimeError(f"expected scalar type {x.dtype} but found {weight.dtype}")
    if func is _aten.histc.default and not args[0].is_floating_point():  # the CPU counts floating numbers alone
        args = [args[0].float(), *args[1:]]
    if func in _SOFTMAXES and args[2]:
        args = [args[0].float(), args[1], False]
    given = [leaf for leaf in tree_leaves((args, kwargs)) if type(leaf) is Emulated]
    leaves = kwargs.get("device") is not None and not _is_cuda(kwargs["device"])
    out = func(*tree_map(_real, args), **tree_map(_real, kwargs))
    if leaves or func is _aten._local_scalar_dense.default:
        return out
    return tree_map(lambda value: _claimed(value, given), out)


def _real(value: Any) -> Any:
    if type(value) is Emulated:
        return value._held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _claimed(value: Any, given: list[Emulated]) -> Any:
    """A result on the device; an operation in place gives back the very tensor that it was given."""
    if not isinstance(value, torch.Tensor) or type(value) is Emulated:
        return value
    found = [one for one in given if one._held is value]
    return found[0] if found else Emulated(value)


def _is_cuda(device: object) -> bool:
    return isinstance(device, (torch.device, str)) and torch.device(device).type == "cuda"


class _Factories(TorchDispatchMode):
    """``torch.arange(..., device="cuda")``, ``x.to("cuda")`` and the like."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(one, Emulated) for one in types) or _is_cuda(kwargs.get("device")):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """``torch.tensor([...], device="cuda")``, which does not go by way of the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            del kwargs["device"]
            out = func(*args, **kwargs)
            return out if type(out) is Emulated else Emulated(out)
        return func(*args, **kwargs)


@contextlib.contextmanager
def device() -> Iterator[None]:
    """Inside it, tensors can be made on the device."""
    with _Literals(), _Factories():
        yield


def cuda(value: Any) -> Any:
    """A tensor, or a module in place, on the device. Build and quantize a model first."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: cuda(tensor) for name, tensor in tensors.items()})
            if "state" in vars(module):  # of an 8-bit layer, which keeps its scales there from the first call on
                _move_attributes(module.state)
        return value
    if type(value) is Emulated or not isinstance(value, torch.Tensor):
        return value
    return _like(value, value.detach().as_subclass(torch.Tensor), _moved)


def _moved(value: Any) -> Any:
    """What a quantized parameter holds: tensors, the quant state of a 4-bit weight, its module."""
    if hasattr(value, "absmax"):
        return _move_attributes(copy.copy(value))
    return cuda(value) if isinstance(value, torch.Tensor) else value


def _move_attributes(state: Any) -> Any:
    for name, value in vars(state).items():
        setattr(state, name, _moved(value))
    return state


def _get_rng_state(device: Any = None) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    torch.set_rng_state(state)


def _nothing() -> Any:
    return lambda *_: None


def _replace_what_asks_the_driver() -> None:
    """``torch.cuda`` answers as on one H100. Random numbers are the CPU's generator's."""
    cuda: Any = torch.cuda
    cuda._initialized = True  # gradient checkpointing then keeps the device's random state, too
    for name in ("_lazy_init", "manual_seed", "manual_seed_all"):
        setattr(cuda, name, _nothing())  # a function each, since Dynamo wants to tell them apart
    cuda.get_rng_state, cuda.set_rng_state = _get_rng_state, _set_rng_state
    cuda.device = lambda *_: contextlib.nullcontext()
    cuda.current_device, cuda.device_count = lambda: 0, lambda: 1
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.is_bf16_supported = lambda *_, **__: True
    # torch.autocast("cuda") switches itself off with a warning where it finds no GPU.
    cuda.amp.common.amp_definitely_not_available = lambda: False


_replace_what_asks_the_driver()
