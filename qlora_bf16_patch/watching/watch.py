"""The watch over a patch's models: verdicts by module and kind of call, and what was cast."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..numerics.checkpoints import rerun_within
from ..numerics.compiling import trace_attributes_without_modes
from ..numerics.mode import ERRORS, Asked, CastOnMismatch, is_on
from ..numerics.places import modules_around, path_of
from .events import READ, CastRefused, Record
from .kinds import Kind, kind_of
from .refusals import add_note, is_mixture, is_of_dtypes, modules_on, operation_of, place_of
from .rewind import Snapshot
from .running import has_compiled_parts, here
from .tracing import tell_while_tracing

Call = Callable[[], Any]
# What a host's tensors need handled, made for one run under the mode. The first argument is told where it casts; the
# second is asked where a dtype is read that is not what it seems, whether to answer with another.
Handlers = Callable[[Asked, Callable[[], bool]], Mapping[Any, Callable[..., Any]]]


class Watch:
    """Finds the modules whose operations torch would refuse, and tells them.

    Args:
        patch: name of the patch that casts, for messages.
        mark: called with each module that is found and its path, to give it a forward that asks :meth:`needs_cast`.
        passes: whether a module's operations are left to torch, with all that it holds: k-bit layers and their adapters
            have patches of their own.
        is_silent: whether there is something in a model that torch would take and that yet has to be handled.
        handlers: functions that a host's tensors need handled.
        strict: asked at each cast whether to raise instead.
    """

    def __init__(
        self,
        patch: str,
        mark: Callable[[torch.nn.Module, str], None],
        passes: Callable[[torch.nn.Module], bool],
        is_silent: Callable[[torch.nn.Module], bool],
        handlers: Handlers,
        strict: Callable[[], bool],
    ) -> None:
        self._is_silent = is_silent
        self.record = Record(patch, strict)
        self._mark, self._passes, self._handlers = mark, passes, handlers
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()
        self._marked: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()
        self._answered: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()
        self._looked_for: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()

    def mode(self, module: torch.nn.Module, marks: bool = False, kind: Kind | None = None) -> CastOnMismatch:
        """The mode for a call of ``module``.

        Args:
            module: its casts are told with paths in this one.
            marks: whether the modules in which it casts are marked.
            kind: the kind of call that it is a part of, where that is over: a checkpoint's in the backward.
        """
        asked = functools.partial(self._asked, module, marks, kind)
        return CastOnMismatch(asked, self._handlers(asked, self._answers))

    def while_compiling(self) -> contextlib.AbstractContextManager[Any]:
        """The mode, once. Dynamo traces it at no cost at run time, and has no frames to read."""
        if is_on():
            return contextlib.nullcontext()
        trace_attributes_without_modes()
        return CastOnMismatch(self._asked_while_compiling)

    def needs_cast(self, module: torch.nn.Module) -> bool:
        """Whether a marked module is to run under the mode: for the kinds of call that were found to need it.

        A call outside of a watched one (a user's of the module itself, a checkpoint's in the backward) always is.
        """
        kinds = self._marked.get(module)
        return here.kind is None or kinds is None or here.kind in kinds

    def is_marked(self, module: torch.nn.Module) -> bool:
        """Whether a cast was found in a module, in any kind of call."""
        return module in self._marked

    def found_in(self, module: torch.nn.Module) -> bool:
        """Whether operations of a module's own forward were found to need a cast in the call that is running."""
        return here.kind in self._marked.get(module, ())

    def call(self, root: torch.nn.Module, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``call()``, a call of ``root`` with these arguments, in a thread where no watched one is running."""
        kind = kind_of(root, args, kwargs)
        here.kind, here.root, here.gradients, here.found = kind, root, torch.is_grad_enabled(), frozenset()
        failed = later = None
        try:
            is_new = kind not in self._known.get(root, ())
            snapshot = Snapshot((*args, *kwargs.values()), copies=is_new)
            for attempt in self._attempts(root, kind, snapshot):
                try:
                    with attempt:
                        result = call()
                except ERRORS as error:
                    if is_of_dtypes(error):
                        failed = error
                        here.refused_in = tuple(modules_on(error))
                    elif failed is None or not here.answers or isinstance(error, CastRefused):
                        raise
                    else:
                        later = error  # of the answer's making, or behind what it mends
                else:
                    self._known.setdefault(root, set()).add(kind)
                    for module in here.answering:
                        self._answered.setdefault(module, set()).add(kind)
                    if failed is not None and not here.found:
                        # Cast where no frame tells the place, as in a block that was compiled by itself.
                        self._marked.setdefault(root, set()).add(kind)
                    return result
                can_run_again = snapshot.restore()
                if not can_run_again:
                    break
            assert failed is not None
            self._known.get(root, set()).discard(kind)
            self._looked_for.setdefault(root, set()).add(kind)
            add_note(later or failed, self._note(failed, root, can_run_again, got_past=later is not None))
            if later is not None:
                raise later from failed
            raise failed
        finally:
            here.__dict__.clear()

    def _attempts(
        self, root: torch.nn.Module, kind: Kind, snapshot: Snapshot
    ) -> Iterator[contextlib.AbstractContextManager[Any]]:
        """What to run a call in, one after another until torch refuses no dtypes in it.

        What works runs as it is, in the first call, too; one in which torch refuses an operation is run again under the
        mode. Not so a first call that is given a cache, which it may write to in place: it runs under the mode at once.
        """
        if kind in self._marked.get(root, ()):  # operations of its own forward
            yield self.mode(root)
        elif kind in self._known.get(root, ()) or not self._looks_first(root, kind, snapshot):
            yield contextlib.nullcontext()
        yield self.mode(root, marks=True)
        while here.read and not here.answers.issuperset(map(type, here.refused_in)):
            # Read by one of the modules around the operation, and by others of their classes.
            here.answers = here.answers.union(map(type, here.refused_in))
            here.answering = frozenset()
            yield self.mode(root, marks=True)

    def _looks_first(self, root: torch.nn.Module, kind: Kind, snapshot: Snapshot) -> bool:
        if kind in self._looked_for.get(root, ()):  # the last one failed, and could not be run again
            return True
        cached = snapshot.holds_something and not torch.is_grad_enabled() and not has_compiled_parts(root)
        return cached or self._is_silent(root)

    def _note(self, error: Exception, root: torch.nn.Module, ran_again: bool, got_past: bool) -> str:
        where = f"{self.record.patch}: torch refused {operation_of(error)} in {place_of(error, root)}"
        if got_past:
            return (
                f"{where}. This error came when the call was run again, with packed weights' dtypes told as those that "
                "they were quantized from. Where the model asks for them to see whether its weights are packed, that "
                "may be why; please report it then."
            )
        if not ran_again:
            return (
                f"{where}, which no call of this kind had shown before. It was not run again under the patch, since it "
                "has written to its arguments; the next call of this kind is watched, and mended."
            )
        if not is_mixture(error):
            return f"{where}: not for a mixture of floating dtypes, so there is nothing that the patch could cast."
        return (
            f"{where}, under the patch as well, which knows no cast that torch would take. Cast one operand to the "
            "dtype of the other where it is made, and please report it."
        )

    def _answers(self) -> bool:
        here.read = True
        return bool(here.answers) or bool(self._answered)

    def _is_answered(self, module: torch.nn.Module, kind: Kind | None) -> bool:
        if here.kind is not None and type(module) in here.answers:
            here.answering |= {module}
            return True
        kinds = self._answered.get(module, ())
        return kind in kinds or (kind is None and bool(kinds))  # outside of a watched call: see `needs_cast`

    def _asked(
        self,
        owner: torch.nn.Module,
        marks: bool,
        kind: Kind | None,
        func: Any,
        operand: str,
        given: torch.dtype,
        to: torch.dtype,
    ) -> bool:
        """Called by the mode of ``owner`` before a cast: finds the place, tells it, marks it."""
        if torch.compiler.is_compiling():
            return True  # a part that is compiled by itself: there are no frames to read
        around = []
        for module in modules_around():
            if self._passes(module):
                return False
            around.append(module)
            if module is owner:
                break
        around = around or [owner]
        innermost, kind = around[0], kind or here.kind
        if func == READ and not self._is_answered(innermost, kind):
            return False
        self.record.tell(innermost, here.root or owner, func, operand, (given, to), kind)
        if marks and here.kind is not None:
            self._mark_one(around, here.kind)
        rerun_within(functools.partial(self.mode, innermost, kind=kind))
        return True

    def _mark_one(self, around: list[torch.nn.Module], kind: Kind) -> None:
        """Mark the innermost module whose own mode would see the operation: a hook runs outside of its forward."""
        for module in around:
            if module in here.found:
                return
            kinds = self._marked.setdefault(module, set())
            if kind not in kinds:
                kinds.add(kind)
                here.found |= {module}
                self._mark(module, path_of(module, here.root))
                return

    def _asked_while_compiling(self, func: Any, operand: str, given: torch.dtype, to: torch.dtype) -> bool:
        self.tell(None, func, operand, given, to)
        return True

    def tell(self, module: Any, operation: Any, operand: str, given: torch.dtype, to: torch.dtype) -> None:
        """Tell a cast once, or raise in strict mode.

        Args:
            module: the innermost one around it; None where Dynamo traces, and finds out.
            operation: torch's function, or its name.
            operand: which of its operands is cast.
            given: its dtype.
            to: the dtype that it is cast to.
        """
        if torch.compiler.is_compiling():
            tell_while_tracing(self.record, operation, operand, given, to, module)
        else:
            self.record.tell(module, here.root or module, operation, operand, (given, to), here.kind)
