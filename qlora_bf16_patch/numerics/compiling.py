"""What Dynamo needs to trace a function mode in a model whose weights are of a tensor subclass."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack


def trace_attributes_without_modes() -> None:
    """For the frame that is being compiled: no function mode is asked when an attribute of a tensor is read.

    Under a mode Dynamo recurses for ever when ``shape``, ``dtype`` or ``device`` of a subclass with a
    ``__torch_function__`` is read (bitsandbytes' ``Params4bit``), and refuses one that has switched its own off
    (``Int8Params``): torch 2.13.0, _dynamo/variables/torch_function.py, ``TensorWithTFOverrideVariable.var_getattr``
    asks ``can_dispatch_torch_function``, which says yes wherever a mode is on. It would not have asked the mode: it
    calls the subclass. Only the state of this one compilation is changed, and nothing where a release has another.
    """
    from torch._dynamo.comptime import comptime

    comptime(_without_modes)


def _without_modes(context: Any) -> None:
    state: Any = getattr(getattr(context, "_ComptimeContext__tx", None), "symbolic_torch_function_state", None)
    asked = getattr(state, "in_torch_function_mode", None)
    if asked is not None and not isinstance(asked, functools.partial):
        state.in_torch_function_mode = functools.partial(_is_asked, asked)


def _is_asked(asked: Any) -> bool:
    return sys._getframe(2).f_code.co_name != "var_getattr" and bool(asked())


def source_of(x: torch.Tensor) -> torch.Tensor | None:
    """The floating tensor that was cast to the integers ``x`` while Dynamo traced; None where no mode saw it.

    A packed weight's storage dtype is an integer, and a model that casts activations to it truncates them. Which cast
    is such a one shows only where the integers reach a k-bit layer.
    """
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        for result, source in getattr(mode, "truncated", ()):
            if result is x:
                return source  # type: ignore[no-any-return]
    return None
