"""Hooks on every module of a model, and a wrapper around its ``generate``; all of them are taken out again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .copies import Generate, Hook, keep_out_of_copies

Entered = Callable[[str, torch.nn.Module, Any, Any], None]
Left = Callable[[str, torch.nn.Module, Any], None]
Around = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def hooked(model: torch.nn.Module, entered: Entered, left: Left) -> Iterator[None]:
    """Call ``entered(path, module, args, kwargs)`` before each forward in ``model``, and ``left`` after it.

    Where a forward raises, ``left(path, module, result)`` is called while the error is being handled. A copy or pickle
    of a module has no such hook.
    """
    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            for undo in hook(path, module, entered, left):
                stack.callback(undo)
        yield


def hook(path: str, module: torch.nn.Module, entered: Entered, left: Left) -> Iterator[Callable[[], None]]:
    """Put the hooks of :func:`hooked` into one module, and give what takes each of them out again."""
    if isinstance(module, torch.jit.ScriptModule):  # it takes none
        return
    yield keep_out_of_copies(module)
    before = Hook(_before(entered, path))
    yield module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove
    after = Hook(_after(left, path))
    yield module.register_forward_hook(after, with_kwargs=True, always_call=True).remove


# Of a hook that was taken out while its module runs, by another thread or another hook, torch no longer knows that it
# wants keyword arguments, and calls it without them (torch/nn/modules/module.py, _call_impl; torch 2.13.0).


def _before(entered: Entered, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any, *rest: Any) -> None:
        if rest:
            entered(path, module, args, *rest)

    return hook


def _after(left: Left, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any, *rest: Any) -> None:
        if len(rest) == 2:
            left(path, module, rest[1])

    return hook


@contextlib.contextmanager
def around_generate(model: torch.nn.Module, around: Around) -> Iterator[None]:
    """Run each ``generate`` of ``model``, and of the models that it holds, inside of ``around()``."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            for undo in wrap_generate(module, around):
                stack.callback(undo)
        yield


def wrap_generate(module: torch.nn.Module, around: Around) -> Iterator[Callable[[], None]]:
    """Run a module's ``generate`` inside of ``around()``, if it has one, and give what takes that back."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    original = _generate_of(module)
    if callable(original) and not isinstance(original, torch.nn.Module):
        ours = Generate(module, original, module.__dict__.get("generate"), around)
        module.__dict__["generate"] = ours
        yield functools.partial(ours.take_out_of, module)


def _generate_of(module: torch.nn.Module) -> Any:
    try:
        return getattr(module, "generate", None)
    except Exception:  # a property of a model's own code
        return None
