"""What Dynamo needs to trace a function mode in a model whose weights are of a tensor subclass."""

from __future__ import annotations

import functools
import sys
from types import CodeType
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack

from .mode import CastOnMismatch, is_on


def trace_attributes_without_modes() -> None:  # pragma: no cover: Dynamo traces it, and Python never runs it
    """For the frame that is being compiled: no function mode is asked when an attribute of a tensor is read.

    Under a mode Dynamo recurses for ever when ``shape``, ``dtype`` or ``device`` of a subclass with a
    ``__torch_function__`` is read (bitsandbytes' ``Params4bit``), and refuses one that has switched its own off
    (``Int8Params``): torch 2.13.0, _dynamo/variables/torch_function.py, ``TensorWithTFOverrideVariable.var_getattr``
    asks ``can_dispatch_torch_function``, which says yes wherever a mode is on. It would not have asked the mode: it
    calls the subclass. Only the state of this one compilation is changed, and nothing where a release has another.

    Behind a graph break the frames are compiled one by one, with the mode already on: their states are changed, too.
    """
    from torch._dynamo.comptime import comptime

    comptime(_without_modes)


def _without_modes(context: Any) -> None:
    state: Any = getattr(getattr(context, "_ComptimeContext__tx", None), "symbolic_torch_function_state", None)
    if state is None or _ASKED in vars(state) or not hasattr(state, _ASKED):
        return
    original = getattr(state, _ASKED)
    setattr(state, _ASKED, lambda: not _reads_an_attribute() and original())
    leave_the_mode_uncompiled()
    handler: Any = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
    if handler is not None and _starts not in handler.start_callbacks:  # torch._dynamo.reset() takes them out
        handler.register_start_callback(_starts)
        handler.register_end_callback(_ends)


@functools.cache
def leave_the_mode_uncompiled() -> None:
    """Where code runs uncompiled under a mode, as behind a graph break, the mode and what it calls do so, too.

    Dynamo would compile its ``__torch_function__`` as a function of its own, once for each operation, and mixes up the
    arguments of frames beneath it (torch 2.13.0, an LSTM). Where it traces the mode inside of a model it inlines it.
    """
    leave_uncompiled(CastOnMismatch.__torch_function__.__code__)


def leave_uncompiled(code: CodeType, with_what_it_calls: bool = True) -> None:
    """Dynamo compiles no function of this code where it runs; where it traces a call of it, it inlines it as ever.

    It would compile a hook, or what stands before every module's call, anew for each module, up to its limit of
    recompilations, which is an error under ``fullgraph=True`` (torch 2.13.0).
    """
    from torch._dynamo import eval_frame, types

    theirs: Any = types
    if hasattr(eval_frame, "set_code_exec_strategy"):  # pragma: no branch: torch 2.7 has it first
        skip = theirs.FrameAction.SKIP
        strategy = theirs.FrameExecStrategy(skip, skip if with_what_it_calls else theirs.FrameAction.DEFAULT)
        eval_frame.set_code_exec_strategy(code, strategy)


_ASKED = "in_torch_function_mode"
_originals: dict[Any, Any] = {}  # by class, its method, while a frame is compiled under the mode


def _starts(*_: Any) -> None:  # an argument that torch 2.8 gives, and 2.7 does not
    """A frame is about to be compiled; Dynamo holds its lock, and so nobody else's is."""
    cls: Any = getattr(sys.modules.get("torch._dynamo.variables.torch_function"), "SymbolicTorchFunctionState", None)
    if _ASKED in vars(cls or object) and is_on():
        original = _originals[cls] = vars(cls)[_ASKED]
        setattr(cls, _ASKED, lambda state: not _reads_an_attribute() and original(state))


def _ends(*_: Any) -> None:
    while _originals:
        cls, original = _originals.popitem()
        setattr(cls, _ASKED, original)


def _reads_an_attribute() -> bool:
    return sys._getframe(3).f_code.co_name == "var_getattr"


def source_of(x: torch.Tensor) -> torch.Tensor | None:  # pragma: no cover: Dynamo traces it
    """The floating tensor that was cast to the integers ``x`` while Dynamo traced; None where no mode saw it.

    A packed weight's storage dtype is an integer, and a model that casts activations to it truncates them. Which cast
    is such a one shows only where the integers reach a k-bit layer.
    """
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        for result, source in getattr(mode, "truncated", ()):
            if result is x:
                return source  # type: ignore[no-any-return]
    return None
