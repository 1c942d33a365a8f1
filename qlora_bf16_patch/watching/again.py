"""Whether a module's forward, in which torch has refused an operation, may run a second time: unknown means no."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules import module as torch_module

from ..numerics.checkpoints import is_inside
from ..numerics.mode import memory_of

_PLAIN = (bool, str, bytes, int, float, complex, slice, type(None), torch.dtype, torch.device, torch.Size)
_HOLDERS = (list, dict, set, bytearray, collections.deque)
_CLOSED = (*_PLAIN, torch.Tensor, torch.nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)
_MOST = 10_000  # objects that are looked at
_HOOKS = [value for name, value in vars(torch_module).items() if name.startswith("_global_forward_")]


def hindrance(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], passes: Callable[[torch.nn.Module], bool]
) -> str | None:
    """Why a forward must not run again: its first half may have changed something that no function mode can see.

    Args:
        module: its parts are called again, too.
        args: what it was given.
        kwargs: the same.
        passes: whether a part is a layer that is known to write to nothing.

    Returns:
        The end of a sentence; None where it may run again, as long as it writes to no tensor of :func:`memory`.
    """
    if dist.is_available() and dist.is_initialized():
        return "it may have exchanged tensors with other processes, which do not run theirs again"
    if module.training and is_inside():
        return "it is inside of a checkpoint, whose random numbers it may have drawn"
    for value in _items((*args, *kwargs.values())):
        if not isinstance(value, (torch.Tensor, *_PLAIN)):
            return f"it was given a {type(value).__name__}, which it may have written to"
    if any(_HOOKS):
        return "hooks are registered for all modules"
    for part in _parts(module, passes):
        if part is not module and (part._forward_hooks or part._forward_pre_hooks):
            return f"it calls hooks of a {type(part).__name__}"
        if any(hasattr(value, name) for value in vars(part).values() for name in ("__next__", "__array_interface__")):
            return f"a {type(part).__name__} in it keeps an iterator or an array"
    return None


def state_of(module: torch.nn.Module, passes: Callable[[torch.nn.Module], bool]) -> list[tuple[Any, Any]]:
    """What a module and its parts keep: lists, dicts, caches and what these hold, each with a copy."""
    found: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    own = [vars(part) for part in _parts(module, passes)]
    todo: list[Any] = [*own]
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if id(value) not in seen and not isinstance(value, _CLOSED):
            seen.add(id(value))
            holder = value if isinstance(value, _HOLDERS) else getattr(value, "__dict__", ())
            # A module may count its calls.
            found.append((holder, _copied(holder, any(holder is one for one in own))))
            todo += holder.values() if isinstance(holder, dict) else holder
    return found


def unchanged(state: list[tuple[Any, Any]]) -> bool:
    """Whether all of it still is as it was."""
    return all(_copied(holder, copy[0]) == copy for holder, copy in state)


def _copied(holder: Any, counts: bool) -> list[Any]:
    """What is in it: an object is told from another by its identity."""
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    return [counts, *((name, id(item)) for name, item in items if not (counts and isinstance(item, _PLAIN)))]


def _parts(module: torch.nn.Module, passes: Callable[[torch.nn.Module], bool]) -> Iterator[torch.nn.Module]:
    if not passes(module):
        yield module
        for child in module.children():
            yield from _parts(child, passes)


def memory(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], passes: Callable[[torch.nn.Module], bool]
) -> frozenset[int]:
    """The memory of the tensors that a forward was given, and of those that the module and its parts hold."""
    tensors = [value for value in _items((*args, *kwargs.values())) if isinstance(value, torch.Tensor)]
    for part in _parts(module, passes):
        held = (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        tensors += [value for value in held if isinstance(value, torch.Tensor)]
    return frozenset(key for tensor in tensors if (key := memory_of(tensor)))


def _items(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if type(value) is tuple:
            yield from _items(value)
        else:
            yield value
