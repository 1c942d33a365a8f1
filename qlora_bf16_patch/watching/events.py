"""What was cast, as a record that log, strict mode and status read."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..engine.installation import Bound, Installation
from ..numerics.places import modules_around, path_of
from .kinds import Kind, spoken_kind
from .running import here
from .tracing import tell_while_tracing

logger = logging.getLogger("qlora_bf16_patch")

# What an operand or an operation is called in a message, where torch's own name would not be understood.
_OPERANDS = {"attn_mask": "attention mask"}
_OPERATIONS = {"__setitem__": "index_put", "__matmul__": "matmul", "__rmatmul__": "matmul"}


# Called at each cast with the innermost module around it, for as long as somebody looks (inspection/trace.py).
Listener = Callable[[torch.nn.Module, "Cast"], None]
listeners: list[Listener] = []
_modules_cast = 0


def modules_cast() -> int:
    """In how many modules something was cast in this process, those that are gone included."""
    return _modules_cast


def forget_modules() -> None:
    """Count from here on: in a process that was forked."""
    global _modules_cast
    _modules_cast = 0
    for record in _records.values():
        record._known.clear()


class CastRefused(TypeError):
    """Strict mode: an operand would have been cast."""


@dataclasses.dataclass(frozen=True)
class Cast:
    """One cast at one place; it is kept once, however often and in whatever kinds of call it happens.

    Attributes:
        path: the innermost module's, in the model that is watched.
        module: its class.
        operation: torch's name of the operation.
        operand: which of its operands was cast.
        given: dtype of the operand.
        to: dtype that it was cast to.
        patch: the patch that cast it.
        kind: the kind of call in which it was seen first, in words.
        needed: whether torch would have raised without it.
    """

    path: str
    module: str
    operation: str
    operand: str
    given: torch.dtype
    to: torch.dtype
    patch: str
    kind: str = dataclasses.field(default="", compare=False)
    needed: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self._what()}"

    def _what(self) -> str:
        if self.operand == "packed weight":
            if self.operation == "dtype":  # it was read
                return f"reads a packed weight's dtype, and is told {self.to} instead of its storage, {self.given}"
            if self.given == self.to:
                return "a frozen packed weight is not clamped in place"
            return f"a packed weight is dequantized to {self.to} before {self.operation}"
        if self.operation == "linear" and self.operand == "input":
            return f"{self.given} hidden states are cast to its {self.to} weights"
        return f"{self.operation} has its {self.operand} cast from {self.given} to {self.to}"

    def refusal(self) -> str:
        """What strict mode raises."""
        if self.operand == "packed weight":
            what = f"{self._what()} by {self.patch}"
        else:
            what = (
                f"{self.operation} computes in {self.to} and was given {self.given} as its {self.operand}. "
                f"{self.patch} would have cast it"
            )
        return (
            f"{self.path} ({self.module}): {what}, but strict mode is on (QLORA_BF16_PATCH_STRICT, or "
            "qlora_bf16_patch.strict()): cast it where it is made, or switch that off."
        )


class Record:
    """The casts of a patch, each recorded once for a module.

    Args:
        patch: its installation.

    Attributes:
        casts: an ordered set.
    """

    def __init__(self, patch: Installation) -> None:
        self.patch = patch
        self.casts: dict[Cast, None] = {}
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()

    def is_new(self, module: torch.nn.Module, operation: Any, operand: str, *dtypes: torch.dtype) -> bool:
        """Whether a cast was not recorded for the module before."""
        return (operation, operand, *dtypes) not in self._known.get(module, ())

    def tell(self, module: Any, operation: Any, operand: str, given: torch.dtype, to: torch.dtype, *more: Any) -> bool:
        """Record a cast that is about to be made; a function mode can be given this to ask. See :meth:`add`."""
        if torch.compiler.is_compiling():  # first: Dynamo would guard on who listens, and compile anew for each
            tell_while_tracing(self, operation, operand, given, to, module)
        else:
            self.add(module, operation, operand, given, to, *more)
        return True

    def add(
        self,
        module: torch.nn.Module,
        operation: Any,
        operand: str,
        given: torch.dtype,
        to: torch.dtype,
        kind: Kind | str | None = None,
        root: torch.nn.Module | None = None,
    ) -> None:
        """Log a cast, once for a module.

        Args:
            module: the innermost one around the operation.
            operation: torch's function, or its name.
            operand: which of its operands is cast.
            given: its dtype.
            to: the dtype that it is cast to.
            kind: of the call; that of the watched call that is running by default.
            root: the module in which the path is looked for, where the module does not know it.

        Raises:
            CastRefused: in strict mode.
        """
        global _modules_cast
        what, known = (operation, operand, given, to), self._known.get(module, ())
        if what in known and not self.patch.strict and not listeners:
            return
        path = _path(module) or path_of(module, root or here.root or [module, *modules_around()][-1])
        spoken = kind if isinstance(kind, str) else spoken_kind(kind or here.kind)
        operand = _OPERANDS.get(operand, operand)
        cast = Cast(path, type(module).__name__, name_of(operation), operand, given, to, self.patch.name, spoken)
        if self.patch.strict:
            raise CastRefused(cast.refusal())
        _publish(module, cast)
        if what not in known:
            _modules_cast += not known
            self.casts.setdefault(cast)
            self._known[module] = {*known, what}
            logger.info("%s", cast)


_records: weakref.WeakKeyDictionary[Installation, Record] = weakref.WeakKeyDictionary()


def record_of(patch: Installation) -> Record:
    """The record of a patch's casts."""
    return _records.setdefault(patch, Record(patch))


def computed(patch: Installation, module: torch.nn.Module, operand: str, given: torch.dtype, to: torch.dtype) -> None:
    """A cast that a layer's patch makes where torch would not have raised: so that the layer computes as it trained."""
    if given is not to:
        what = "forward", operand, given, to, patch.name
        _publish(module, Cast(_path(module), type(module).__name__, *what, needed=False))


def _path(module: torch.nn.Module) -> str:
    """The path that our forward of the module knows, if it has one."""
    own = vars(module)
    forward = own.get("_old_forward", own.get("forward"))
    return getattr(forward, "path", "") if isinstance(forward, Bound) else ""


def _publish(module: torch.nn.Module, cast: Cast) -> None:
    for listener in tuple(listeners):  # one may be gone with what it was for
        listener(module, cast)


def name_of(func: Any) -> str:
    """An operation's name as a reader knows it."""
    name = func if isinstance(func, str) else getattr(func, "__name__", None) or repr(func)
    return _OPERATIONS.get(name, name)
