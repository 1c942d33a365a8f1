"""``peft.boundary``: all that is no k-bit layer inside a k-bit model takes operands of different floating dtypes.

Torch's own layers have their input cast to the weights and the result cast back. Everything else is found by watching:
a call in which torch refuses an operation is run again under the function mode, and the module around the operation
keeps the mode (:mod:`..watching`). Forwards are instance attributes: the other objects of a class pay nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..engine.installation import Installation, call_shadowed
from ..hosts.bitsandbytes import is_4bit, stores_floats
from ..hosts.own_backward import has_own_backward
from ..hosts.packed import PackedWeights
from ..hosts.peft import is_kbit_layer, is_prompt_learning
from ..numerics import training
from ..numerics.autocast import NOTHING
from ..numerics.dtypes import autocast_is_on, floating
from ..watching.events import PATH
from ..watching.running import here
from ..watching.watch import Watch
from . import torch_layers
from .injection import after_injection, left_alone, safely
from .linear4bit import warn_of_float32

NAME = "peft.boundary"
_watches: weakref.WeakKeyDictionary[Installation, Watch] = weakref.WeakKeyDictionary()
_entry_forwards: set[Callable[..., Any]] = set()


def take_in_after(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``BaseTuner.inject_adapter``, and ``PeftModel.add_adapter`` for the methods that inject none."""
    if original.__name__ == "add_adapter":
        return _after_prompt_learning(original, installation)
    installation.reporters += [functools.partial(_seen, watch_of(installation)), training.seen]
    return after_injection(original, installation, take_in)


def _after_prompt_learning(original: Any, installation: Installation) -> Callable[..., Any]:
    @functools.wraps(original)
    def add_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if is_prompt_learning(self):
            safely(take_in, self, installation)
        return result

    return add_adapter


def watch_of(installation: Installation) -> Watch:
    """The watch over all models that the installation has taken in."""
    if installation not in _watches:
        mark = functools.partial(_mark, installation)
        _watches[installation] = Watch(
            NAME,
            mark,
            _is_layer,
            stores_floats,
            lambda asked, answered: PackedWeights(asked, answered).handlers,
            lambda: installation.strict,
        )
    return _watches[installation]


def take_in(model: nn.Module, installation: Installation) -> None:
    """Give a k-bit model what notices new kinds of call, and torch's own layers in it their forwards."""
    layers = [module for module in model.modules() if _is_layer(module)]
    inside, entries = {part for layer in layers for part in layer.modules()}, set(_entries(model))
    for path, module in model.named_modules():
        try:
            if is_4bit(module):
                warn_of_float32(installation, module)
            if module in inside:
                continue
            cls: Any = type(module)
            forward = _entry(installation, cls) if module in entries else _forward_for(installation, cls)
            if module not in entries and watch_of(installation).is_marked(module):
                continue  # with an earlier adapter
            if forward is not None:
                module.__dict__[PATH] = path or cls.__name__
                installation.bind(module, forward)
        except Exception as error:
            left_alone(installation, path, error)


def _is_layer(module: nn.Module) -> bool:
    try:
        return is_kbit_layer(module)
    except Exception:  # a tuner layer that cannot say what it is around: it was told (injection.py, kbit_tuners)
        return False


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a program calls: the model, and its stacks of layers, an encoder's, which generation calls."""
    yield module
    for child in module.children():
        cls: Any = type(child)
        if isinstance(child, nn.ModuleList) or torch_layers.kind(cls) is not None:  # a parametrization is a ModuleList
            continue
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _entries(child)


def _forward_for(installation: Installation, cls: Any) -> Callable[..., Any] | None:
    if has_own_backward(cls):
        return _marked(installation, cls)
    return torch_layers.forward_for(installation, watch_of(installation), cls)


def _mark(installation: Installation, module: nn.Module, path: str) -> None:
    """A module in which the watch has seen a cast."""
    module.__dict__.setdefault(PATH, path)
    if getattr(module.__dict__.get("forward"), "__func__", None) in _entry_forwards:  # those ask by themselves
        return
    cls: Any = type(module)
    # A layer of torch's that was put in after the model was taken in gets what it would have got then.
    late = None if module in installation.bound else _forward_for(installation, cls)
    installation.bind(module, late or _marked(installation, cls))


def _seen(watch: Watch) -> list[str]:
    casts = list(watch.record.casts)
    if not casts:
        return []
    shown = "; ".join(f"{cast} (first in {cast.kind})" if cast.kind else str(cast) for cast in casts[:8])
    shown += f"; and {len(casts) - 8} more" if len(casts) > 8 else ""
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
            with watch.while_compiling():
                return call_shadowed(installation, self, *args, **kwargs)
        call = functools.partial(call_shadowed, installation, self, *args, **kwargs)
        return watch.call(self, call, args, kwargs)

    _entry_forwards.add(forward)
    return forward


def _autocast_around(values: tuple[Any, ...]) -> bool:
    for value in values:
        if isinstance(value, torch.Tensor):
            return autocast_is_on(value.device.type)
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled()


@functools.cache
def _marked(installation: Installation, cls: Any) -> Callable[..., Any]:
    """Routers, experts, attention and whatever else torch refused an operation in."""
    watch, own_backward = watch_of(installation), has_own_backward(cls)

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not installation.on:
            return call_shadowed(installation, self, *args, **kwargs)
        if torch.compiler.is_compiling():
            with watch.while_compiling():
                return call_shadowed(installation, self, *args, **kwargs)
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
