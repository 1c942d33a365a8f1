"""Casts in code that is being compiled, told while Dynamo traces it: at run time there is no call of ours left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..numerics.places import is_forwards

if TYPE_CHECKING:
    from .events import Record

KIND = "compiled"


def tell_while_tracing(  # pragma: no cover: Dynamo traces it
    record: Record, operation: Any, operand: str, given: torch.dtype, to: torch.dtype, module: Any = None
) -> None:
    """Tell a cast that Dynamo is about to trace. It looks these up by their names, at the time of the trace.

    Args:
        record: of the patch.
        operation: torch's function, or its name.
        operand: which of its operands is cast.
        given: its dtype.
        to: the dtype that it is cast to.
        module: the innermost one around the operation, where the caller knows it.
    """
    from torch._dynamo.comptime import comptime

    comptime(_tell)


def _tell(context: Any) -> None:
    frame: Any = getattr(context, "_ComptimeContext__tx", None)
    record, operation, operand, given, to, module = (
        _value(frame, name) for name in ("record", "operation", "operand", "given", "to", "module")
    )
    modules = list(_modules(frame))
    module = module or (modules[0] if modules else None)
    if record is not None and module is not None:
        record.add(module, operation, operand, given, to, KIND, modules[-1] if modules else module)


def _modules(frame: Any) -> Iterator[torch.nn.Module]:
    """Those whose forwards are being traced, the innermost first."""
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and (code.co_name == "forward" or is_forwards(code)):
            value = _value(frame, code.co_varnames[0])
            module = value.instance() if is_forwards(code) else value
            if isinstance(module, torch.nn.Module):
                yield module
        frame = getattr(frame, "parent", None)


def _value(frame: Any, name: str) -> Any:
    """What a local variable of a frame that is traced holds (torch 2.13.0, _dynamo/symbolic_convert.py)."""
    variable = getattr(frame, "symbolic_locals", {}).get(name)
    if variable is None:
        return getattr(frame, "f_locals", {}).get(name)  # the outermost frame forgets what it needs no more
    variable = variable.realize()
    if variable.is_python_constant():
        return variable.as_python_constant()
    return getattr(variable, "value", None)
