"""The function mode that casts the operands of single operations, wherever inside a module they stand.

A mode sees every call of torch's Python API in its block. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from .dtypes import floating
from .rules import ASKED_FIRST, rule_of
from .rules.rule import fit, run

# Asked before each cast: the function, the operand's name, its dtype, the dtype that it would get. It may refuse.
Asked = Callable[[Any, str, torch.dtype, torch.dtype], bool]
# All that torch says of dtypes that do not fit has one of these words in it, and its other errors seldom do.
_OF_DTYPES = re.compile(
    r"type|precision|overflow|Float|Half|should be the same|did not match|primitive descriptor", re.IGNORECASE
)
_OF_MEMORY = re.compile("out of memory|allocate memory|ALLOC_FAILED")  # may name a type, too: of a kernel
ERRORS = (RuntimeError, TypeError, ValueError)
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as)
_REFUSED = "_qlora_bf16_patch_refused"
# Torch 2.6 and older do not tell.
_hooks_on_saved_tensors: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


class Written(BaseException):
    """An operation is about to write to memory that it must not touch. The program's own handlers must not catch it."""


class CastOnMismatch(TorchFunctionMode):
    """Inside it, an operation that torch refuses for its operands' dtypes has them cast, and its result cast back.

    Each operation is tried first, so where torch takes the operands the bits stay the same. One that it refuses goes by
    its rule, which names a dtype; where torch has no kernel in that one, it runs in that of another operand.

    Attributes:
        casts: how many operations were cast.
        truncated: integers that floating tensors were cast to while Dynamo traced, with those.
        untouchable: memory that operations must not write to, as long as nothing was cast.

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
        self.truncated: list[tuple[Any, Any]] = []
        self.untouchable: frozenset[int] = frozenset()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Dynamo finds out while it traces, and cannot be asked; torch.jit's tracer crashes after a refused operation.
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return self._unasked(func, args, kwargs)
        if self.untouchable and not self.casts:
            if any(memory_of(tensor) in self.untouchable for tensor in _written(func, args, kwargs)):
                raise Written
        if func in self.special:
            return self.special[func](self, func, args, kwargs)
        try:
            # Hooks on saved tensors (offloading) would be given those of an operation that torch refuses, too.
            asks = func in ASKED_FIRST or _hooks_on_saved_tensors(True) is not None
            return self._unasked(func, args, kwargs) if asks else func(*args, **kwargs)
        except ERRORS as error:
            if not _OF_DTYPES.search(str(error)):
                raise
            operands = floating((*args, *kwargs.values()))
            error.__dict__[_REFUSED] = func, list(dict.fromkeys(tensor.dtype for tensor in operands))
            is_setter = getattr(func, "__name__", "") == "__set__"  # of `.data`, `.grad`: their dtype is a wish
            if is_setter or kwargs.get("out") is not None:
                raise
            return self._again(error, func, args, kwargs)

    def may_cast(self, func: Any, operand: str, given: torch.dtype, to: torch.dtype) -> bool:
        """Called where an operand is about to be cast."""
        if self.asked is not None and not self.asked(func, operand, given, to):
            return False
        self.casts += 1
        return True

    def _unasked(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in _CASTS:
            result = func(*args, **kwargs)
            if args[0].is_floating_point() and not result.is_floating_point():
                self.truncated.append((result, args[0]))
            return result
        rule = rule_of(func)
        if kwargs.get("out") is None and rule.refuses(func, args, kwargs):
            wanted, given = rule.dtypes(func, [*floating((*args, *kwargs.values()))])
            fitted, told = fit(rule, func, args, kwargs, wanted)
            if told and self.may_cast(func, *told):
                return run(rule, func, args, kwargs, fitted, given)
        return func(*args, **kwargs)

    def _again(self, error: Exception, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Torch itself has said that the dtypes do not fit, before it computed anything."""
        rule, operands = rule_of(func), [*floating((*args, *kwargs.values()))]
        if not operands or (rule.in_place and not isinstance(args[0], torch.Tensor)):  # writes to a list's copies: lost
            raise error
        wanted, given = rule.dtypes(func, operands)
        for dtype in dict.fromkeys((wanted, *(() if rule.in_place else (tensor.dtype for tensor in operands)))):
            fitted, told = fit(rule, func, args, kwargs, dtype)
            if told and not self.may_cast(func, *told):
                break
            if told:
                try:
                    return run(rule, func, args, kwargs, fitted, given)
                except ERRORS as again:
                    if not _OF_DTYPES.search(str(again)) or _OF_MEMORY.search(str(again)):
                        if again.__context__ is error:  # the program sees this one alone
                            again.__context__ = None
                        raise
                    # Else torch has no kernel in this dtype.
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and this frame the operands


_T: Any = torch.Tensor
# They give access to a tensor's memory, which may then be written to unseen.
_OPENS = {_T.numpy, _T.data_ptr, _T.untyped_storage, _T.data.__get__, _T.data.__set__, _T.__dlpack__}


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes to, or that a custom one may write to."""
    rule, schema = rule_of(func), getattr(func, "_schema", None)
    values: list[Any] = [kwargs.get("out")]
    if schema is not None:
        values += [*args, *kwargs.values()] if schema.is_mutable else []
    elif rule.in_place or func in _OPENS:
        values += args[:1]
    elif rule.written is not None:
        values += [tensor for _, tensor in rule.written(args, kwargs)]
    return (value for value in values if isinstance(value, torch.Tensor))


def memory_of(tensor: torch.Tensor) -> int | None:
    """What tells one tensor's memory from another's; None of a tensor that has none of its own."""
    with torch._C.DisableTorchFunction():
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # a subclass, sparse
            return None


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Outside of the modes that are on top: code that asks whether a function mode is on finds none of ours."""
    popped: list[Any] = []
    while (stack := _get_current_function_mode_stack()) and isinstance(stack[-1], CastOnMismatch):  # type: ignore[no-untyped-call]
        popped.append(_pop_mode())  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for mode in reversed(popped):
            _push_mode(mode)  # type: ignore[no-untyped-call]


def is_on() -> bool:
    """Whether a :class:`CastOnMismatch` is on in this thread."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(isinstance(mode, CastOnMismatch) for mode in stack)


def refusal_at_hand() -> BaseException:
    """Torch's error about the operation that is about to be cast; one like it, where it was not tried first."""
    error = sys.exc_info()[1]
    if error is not None and _REFUSED in error.__dict__:
        return error
    return RuntimeError("expected operands to have the same dtype, but got: float != c10::BFloat16")


def refused(error: Exception) -> tuple[Any, list[torch.dtype]] | None:
    """The operation that torch refused with this error, and its operands' dtypes; None where no mode saw it."""
    return error.__dict__.get(_REFUSED)
