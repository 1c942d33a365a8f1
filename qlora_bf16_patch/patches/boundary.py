"""``peft.boundary``: all that is no k-bit layer inside a k-bit model takes operands of different floating dtypes.

Torch's own layers have their input cast to the weights and the result cast back. Everything else is found by watching:
the first call of each kind runs under the function mode, and a module in which torch would have refused an operation
keeps it (:mod:`..watching`). Forwards are instance attributes: the other objects of a class pay nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import _get_current_function_mode_stack

from ..engine.installation import Installation, call_shadowed
from ..hosts.bitsandbytes import PackedWeights, is_4bit
from ..hosts.peft import is_kbit_layer
from ..hosts.transformers import OWN_BACKWARD
from ..numerics import training
from ..numerics.autocast import NOTHING
from ..numerics.dtypes import autocast_is_on, floating, mixed_is_allowed
from ..numerics.mode import CastOnMismatch
from ..watching.events import Cast
from ..watching.watch import PATH, Watch, here
from .injection import after_injection, each_module, left_alone
from .linear4bit import warn_of_float32

NAME = "peft.boundary"
_watches: weakref.WeakKeyDictionary[Installation, Watch] = weakref.WeakKeyDictionary()
_entry_forwards: set[Callable[..., Any]] = set()


def inject_adapter(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``BaseTuner.inject_adapter``."""
    installation.reporters.append(functools.partial(_seen, watch_of(installation)))
    return after_injection(original, installation, take_in)


def watch_of(installation: Installation) -> Watch:
    """The watch over all models that the installation has taken in."""
    if installation not in _watches:
        mark = functools.partial(_mark, installation)
        _watches[installation] = Watch(NAME, mark, is_kbit_layer, PackedWeights.special, lambda: installation.strict)
    return _watches[installation]


def take_in(model: nn.Module, installation: Installation) -> None:
    """Give a k-bit model what notices new kinds of call, and torch's own layers in it their forwards."""
    layers = [module for _, module in each_module(model, installation) if _is_layer(module)]
    inside, entries = {part for layer in layers for part in layer.modules()}, set(_entries(model))
    for path, module in each_module(model, installation):
        try:
            if is_4bit(module):
                warn_of_float32(installation, module)
            if module in inside:
                continue
            make = _entry if module in entries else _forward_for(module)
            if make is not None:
                module.__dict__[PATH] = path or type(module).__name__
                cls: Any = type(module)
                installation.bind(module, make(installation, cls))
        except Exception as error:
            left_alone(installation, path, error)


def _is_layer(module: nn.Module) -> bool:
    try:
        return is_kbit_layer(module)
    except Exception:  # told where its turn comes
        return False


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a program calls: the model, and its stacks of layers, an encoder's, which generation calls."""
    yield module
    for child in module.children():
        cls: Any = type(child)
        if isinstance(child, nn.ModuleList) or _kind(cls) is not None:  # a parametrization is a ModuleList
            continue
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _entries(child)


def _forward_for(module: nn.Module) -> Callable[[Installation, Any], Callable[..., Any]] | None:
    cls: Any = type(module)
    if cls.forward is nn.Embedding.forward:
        return _embedding
    if f"{cls.__module__}.{cls.__qualname__}" in OWN_BACKWARD:
        return _marked
    return _torchs_own if _kind(cls) else None


@functools.cache
def _kind(cls: Any) -> str | None:
    """How torch treats mixed dtypes in this class' forward, if that is torch's own."""
    if cls.forward is nn.Linear.forward or (issubclass(cls, _ConvNd) and cls.forward.__module__ == _ConvNd.__module__):
        return "product"
    if cls.forward in (nn.LayerNorm.forward, nn.GroupNorm.forward):
        return "norm"
    return "batch_norm" if cls.forward is _BatchNorm.forward else None


def _mark(installation: Installation, module: nn.Module, path: str) -> None:
    """A module in which the watch has seen a cast."""
    module.__dict__.setdefault(PATH, path)
    if getattr(module.__dict__.get("forward"), "__func__", None) not in _entry_forwards:  # those ask by themselves
        cls: Any = type(module)
        installation.bind(module, _marked(installation, cls))


def _seen(watch: Watch) -> list[str]:
    casts = list(watch.casts)
    if not casts:
        return []
    shown = "; ".join(map(str, casts[:8])) + (f"; and {len(casts) - 8} more" if len(casts) > 8 else "")
    return [f"casts at {len(casts)} place{'s' * (len(casts) > 1)}: {shown}"]


@functools.cache
def _entry(installation: Installation, cls: Any) -> Callable[..., Any]:
    """A model or a stack of layers: notices a call of a new kind."""
    watch = watch_of(installation)

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return call_shadowed(installation, self, *args, **kwargs)
        if here.kind is not None and not torch.compiler.is_compiling():  # inside of another one
            with watch.mode(self) if watch.found_in(self) else NOTHING:
                return call_shadowed(installation, self, *args, **kwargs)
        values = (*args, *kwargs.values())
        training.see(self, _autocast_around(values), values)
        if torch.compiler.is_compiling():
            return _compiled(installation, watch, self, args, kwargs)
        call = functools.partial(call_shadowed, installation, self, *args, **kwargs)
        return watch.call(self, call, args, kwargs)

    _entry_forwards.add(forward)
    return forward


def _autocast_around(values: tuple[Any, ...]) -> bool:
    for value in values:
        if isinstance(value, torch.Tensor):
            return autocast_is_on(value.device.type)
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled()


def _compiled(installation: Installation, watch: Watch, self: Any, args: Any, kwargs: Any) -> Any:
    """Dynamo traces a mode at no cost at run time, so in compiled code it is simply on, once."""
    on = any(isinstance(mode, CastOnMismatch) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    with NOTHING if on else watch.mode_while_compiling():
        return call_shadowed(installation, self, *args, **kwargs)


@functools.cache
def _marked(installation: Installation, cls: Any) -> Callable[..., Any]:
    """Routers, experts, attention and whatever else torch refused an operation in."""
    watch, own_backward = watch_of(installation), f"{cls.__module__}.{cls.__qualname__}" in OWN_BACKWARD

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return call_shadowed(installation, self, *args, **kwargs)
        if torch.compiler.is_compiling():
            return _compiled(installation, watch, self, args, kwargs)
        with _without_autocast(self, args, kwargs) if own_backward else NOTHING:
            if not watch.needs_cast(self):
                return call_shadowed(installation, self, *args, **kwargs)
            with watch.mode(self):
                return call_shadowed(installation, self, *args, **kwargs)

    return forward


def _without_autocast(module: nn.Module, args: Any, kwargs: Any) -> Any:
    given = next(floating((*args, *kwargs.values())), None)
    if module.training and given is not None and given.dtype == torch.float32:
        return torch.autocast(given.device.type, enabled=False)
    return NOTHING


@functools.cache
def _torchs_own(installation: Installation, cls: Any) -> Callable[..., Any]:
    """Linear, convolutions and normalizations: the input is cast to the weights, the result back."""
    watch, kind = watch_of(installation), _kind(cls) or "product"
    operation = cls.__name__

    @functools.wraps(cls.forward)
    def forward(self: Any, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        weight = own["_parameters"].get("weight", own.get("weight"))
        if isinstance(weight, torch.Tensor) and (not isinstance(input, torch.Tensor) or input.dtype is weight.dtype):
            return call_shadowed(installation, self, input, *args, **kwargs)
        if not installation.on:
            return call_shadowed(installation, self, input, *args, **kwargs)
        if weight is None and "weight" not in own["_parameters"]:
            # A parametrization, computed at each look (and spectral norm's moves its vectors): the operation itself is
            # looked at instead.
            return _parametrized(installation, watch, self, input, args, kwargs)
        if weight is None or _is_taken(kind, input, weight):
            return call_shadowed(installation, self, input, *args, **kwargs)
        if not torch.compiler.is_compiling() or installation.strict:
            path = own.get(PATH, operation)
            what = "linear" if kind == "product" else kind
            watch.tell(self, Cast(path, operation, what, "input", input.dtype, weight.dtype))
        return call_shadowed(installation, self, input.to(weight.dtype), *args, **kwargs).to(input.dtype)

    return forward


def _is_taken(kind: str, input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a mixture is torch's business: it takes it, or one of the two is no floating point at all, or float8."""
    if not input.is_floating_point() or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return True
    return mixed_is_allowed(kind, input, weight.dtype)


def _parametrized(installation: Installation, watch: Watch, self: Any, input: Any, args: Any, kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return _compiled(installation, watch, self, (input, *args), kwargs)
    with watch.mode(self):
        return call_shadowed(installation, self, input, *args, **kwargs)


@functools.cache
def _embedding(installation: Installation, cls: Any) -> Callable[..., Any]:
    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs.get("input")
        if installation.on and isinstance(ids, torch.Tensor) and ids.is_floating_point():
            raise TypeError(
                f"{self.__dict__[PATH]} ({type(self).__name__}) was given {ids.dtype} token ids of shape "
                f"{tuple(ids.shape)}. Somebody cast input_ids along with the activations, and bfloat16 rounds whole "
                "numbers above 256. Leave input_ids integers; qlora_bf16_patch makes casts of the inputs needless."
            )
        return call_shadowed(installation, self, *args, **kwargs)

    return forward
