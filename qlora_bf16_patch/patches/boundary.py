"""``peft.boundary``: all that is no k-bit layer inside a k-bit model takes operands of different floating dtypes.

Torch's own layers have their input cast to the weights and the result cast back. Everything else is found by watching
(:mod:`..watching.watch`). Forwards are instance attributes: the other objects of a class pay nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from ..engine.binding import bind
from ..engine.installation import Installation
from ..hosts.bitsandbytes import is_4bit
from ..hosts.own_backward import has_own_backward
from ..hosts.packed import PackedWeights
from ..hosts.peft import is_kbit_layer
from ..numerics import training
from ..numerics.autocast import NOTHING
from ..numerics.dtypes import floating
from ..numerics.places import is_forward
from ..watching.watch import Watch
from ..watching.watched import AsksForModes, Watched
from . import torch_layers
from .injection import after_injection, left_alone
from .linear4bit import warn_of_float32

NAME = "peft.boundary"
_watches: weakref.WeakKeyDictionary[Installation, Watch] = weakref.WeakKeyDictionary()


def take_in_after(original: Any, installation: Installation) -> Callable[..., Any]:
    """Over ``BaseTuner.inject_adapter``, and ``PeftModel.add_adapter`` for the methods that inject none."""
    watch_of(installation)
    return after_injection(original, installation, take_in)


def watch_of(installation: Installation) -> Watch:
    """The watch over all models that the installation has registered."""
    if installation not in _watches:
        register = functools.partial(take_in, installation=installation)
        watch = Watch(installation, _is_layer, register, lambda *asked: PackedWeights(*asked).handlers)
        _watches[installation] = watch
        installation.reporters += [functools.partial(_seen, watch), training.seen]
    return _watches[installation]


def take_in(
    model: nn.Module, installation: Installation, path: str = "", again: bool = False, looks: bool = False
) -> list[nn.Module]:
    """Give the modules of a k-bit model their forwards: those that a program calls, and those that may need a cast.

    Args:
        model: it may have been registered before; modules that were put in since get theirs.
        installation: of the patch.
        path: of the model, if it is a part of another one.
        again: also over a forward that another party has put in the place of ours.
        looks: all other modules, too, its k-bit layers aside, for a call that is looked at.

    Returns:
        Those others.
    """
    watch, entries, others = watch_of(installation), set(_entries(model)), []
    layers = [module for module in model.modules() if _is_layer(module)]
    inside = {part for layer in layers for part in layer.modules()}
    dtypes = {dtype for layer in layers if (dtype := getattr(layer, "compute_dtype", None))}
    dtypes |= {value.dtype for module in model.modules() if module not in inside for value in _floats(module)}
    classes: dict[Any, Any] = {}
    for name, module in model.named_modules(prefix=path):
        try:
            if is_4bit(module):
                warn_of_float32(installation, module)
            is_known = module in installation.bound and not again
            if is_known or module in inside or not _can_be_bound(module, module in entries):
                continue
            cls: Any = type(module)
            if cls not in classes:
                classes[cls] = _forward_class(cls)
            is_needed = module in entries or classes[cls] not in (Watched, AsksForModes)
            is_needed = is_needed or (len(dtypes) > 1 and next(_floats(module), None) is not None)
            if is_needed or looks:
                bind(classes[cls](installation, module, watch, name, module in entries), again)
                others += [] if is_needed else [module]
        except Exception as error:
            left_alone(installation, name, error)
    return others


def _floats(module: nn.Module) -> Iterator[torch.Tensor]:
    """The floating parameters that a module itself holds."""
    return floating(module._parameters.values())


def _is_layer(module: nn.Module) -> bool:
    try:
        return is_kbit_layer(module)
    except Exception:  # a tuner layer that cannot say what it is around: it was told (injection.py, kbit_tuners)
        return False


def _can_be_bound(module: nn.Module, is_entry: bool) -> bool:
    """Whether it has a forward of Python's: a scripted module has none, and ``torch.compile`` brings one of its own."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).forward is nn.Module.forward:
        return False
    return is_entry or not hasattr(module, "_orig_mod")


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a program calls: the model, and its stacks of layers, an encoder's, which generation calls."""
    yield module
    for child in module.children():
        cls: Any = type(child)
        if isinstance(child, nn.ModuleList) or torch_layers.kind(cls) is not None:  # a parametrization is a ModuleList
            continue
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _entries(child)


def _forward_class(cls: Any) -> type[Watched]:
    if has_own_backward(cls):
        return WithOwnBackward
    if _asks_for_modes(cls):
        return torch_layers.forward_class(cls, AsksForModes)
    return torch_layers.forward_class(cls, Watched)


def _asks_for_modes(cls: Any) -> bool:
    """Whether the code of a class' forward, or code that it calls, names torch's function modes."""
    seen: set[Any] = set()
    waiting = [vars(base).get("forward") for base in cls.__mro__]
    for function in waiting:
        if isinstance(function, FunctionType) and function not in seen:
            seen.add(function)
            names = function.__code__.co_names
            if any("torch_function" in name or "function_mode" in name for name in names):
                return True
            found = [function.__globals__.get(name) for name in names]
            found += [vars(module).get(name) for module in found if type(module) is ModuleType for name in names]
            found += [getattr(cls, name, None) for name in names] + [getattr(function, "__wrapped__", None)]
            # torch's functions call the mode; its modules take another path.
            own = [str(getattr(one, "__module__", "")).partition("torch.nn.modules")[0] for one in found]
            waiting += [one for one, name in zip(found, own, strict=True) if name.partition(".")[0] != "torch"]
    return False


def _seen(watch: Watch) -> list[str]:
    casts = list(watch.record.casts)
    if not casts:
        return []
    shown = "; ".join(f"{cast} (first in {cast.kind})" if cast.kind else str(cast) for cast in casts[:8])
    shown += f"; and {len(casts) - 8} more" if len(casts) > 8 else ""
    return [f"casts at {len(casts)} place{'s' * (len(casts) > 1)}: {shown}"]


class WithOwnBackward(Watched):
    """A module whose own autograd function multiplies two dtypes in its backward: see :mod:`..hosts.own_backward`."""

    @is_forward
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        given = next(floating((*args, *kwargs.values())), None)
        runs = self.installation.on and self.instance().training and not torch.compiler.is_compiling()
        without = runs and given is not None and given.dtype == torch.float32
        with torch.autocast(given.device.type, enabled=False) if without else NOTHING:  # type: ignore[union-attr]
            return super().__call__(*args, **kwargs)
