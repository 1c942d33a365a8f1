"""The function mode that mends single operations, wherever inside a module they stand.

A mode sees every call of torch's Python API in its block. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .dtypes import cast, floating
from .rules import RULES

# Asked before each cast: the function, the operand's name, its dtype, the dtype that it would get. It may refuse.
Asked = Callable[[Any, str, torch.dtype, torch.dtype], bool]
# All that torch says of dtypes that do not fit has one of these words in it, and its other errors seldom do.
_OF_DTYPES = re.compile(r"type|precision|Float|Half|should be the same", re.IGNORECASE)


class CastOnMismatch(TorchFunctionMode):
    """Inside it, an operation that torch refuses for its operands' dtypes has them cast, and its result cast back.

    Each operation is tried first, so where torch takes the operands the bits stay the same. One that it refuses goes by
    its rule; where it has none, it runs again in the dtype of its first floating operand.

    Attributes:
        casts: how many operations were mended.
        calls: how many functions were called, where some are special.

    Args:
        asked: asked before each cast, and free to raise.
        special: functions that are handled before the rules, for a host's own tensors, each with its
            ``special(mode, func, args, kwargs)``.
    """

    def __init__(self, asked: Asked | None = None, special: Mapping[Any, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.asked = asked
        self.special = special or {}
        self.casts = 0
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if torch.compiler.is_compiling():  # Dynamo finds out while it traces, and cannot be asked
            if rule is None or kwargs.get("out") is not None:
                return func(*args, **kwargs)
            return rule(self, func, args, kwargs)
        if self.special:
            self.calls += 1
            if func in self.special:
                return self.special[func](self, func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            if kwargs.get("out") is not None:
                raise
            # A rule that knows no cast calls the function again, which raises again.
            return self._again(error, func, args, kwargs) if rule is None else rule(self, func, args, kwargs)

    def may_cast(self, func: Any, operand: str, given: torch.dtype, to: torch.dtype) -> bool:
        """Called by a rule that is about to cast an operand."""
        if self.asked is not None and not self.asked(func, operand, given, to):
            return False
        self.casts += 1
        return True

    def _again(self, error: Exception, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Torch itself has said that the dtypes do not fit, before it computed anything."""
        dtypes = list(dict.fromkeys(tensor.dtype for tensor in floating((*args, *kwargs.values()))))
        is_setter = getattr(func, "__name__", "") == "__set__"  # of `.data`, `.grad`: their dtype is the caller's wish
        if len(dtypes) < 2 or is_setter or not _OF_DTYPES.search(str(error)):
            raise error
        if not self.may_cast(func, "operand", dtypes[1], dtypes[0]):
            raise error
        args = [cast(dtypes[0], value) for value in args]
        return func(*args, **{name: cast(dtypes[0], value) for name, value in kwargs.items()})
