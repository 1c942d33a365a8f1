"""The watch over a patch's models: verdicts by module and kind of call, and what was cast."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..numerics.checkpoints import rerun_within
from ..numerics.collectives import exchanged
from ..numerics.compiling import leave_the_mode_uncompiled, trace_attributes_without_modes
from ..numerics.mode import ERRORS, Asked, CastOnMismatch, is_on
from ..numerics.places import modules_around, path_of
from .events import CastRefused, Record
from .kinds import Kind, kind_of
from .refusals import EXCHANGED, WRITTEN, add_note, is_of_dtypes, modules_on, refusal, why_not_mended
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
        self._exchanging: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def mode(self, module: torch.nn.Module, marks: bool = False, kind: Kind | None = None) -> CastOnMismatch:
        """The mode for a call of ``module``.

        Args:
            module: its casts are told with paths in this one.
            marks: whether the modules in which it casts are marked.
            kind: the kind of call that it is a part of, where that is over: a checkpoint's in the backward.
        """
        if "torch._dynamo" in sys.modules:
            leave_the_mode_uncompiled()
        asked = functools.partial(self._asked, module, marks, kind)
        return CastOnMismatch(asked, self._handlers(asked, self._answers))

    def while_compiling(self) -> contextlib.AbstractContextManager[Any]:  # pragma: no cover: Dynamo traces it
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
        failed = later = hindrance = None
        try:
            is_new, before = kind not in self._known.get(root, ()), exchanged()
            snapshot = Snapshot((*args, *kwargs.values()), copies=is_new)
            for attempt in self._attempts(root, kind, snapshot):
                try:
                    with attempt:
                        result = call()
                except ERRORS as error:
                    if is_of_dtypes(error) and not torch._C._is_tracing():
                        failed = error
                        here.refused_in = tuple(modules_on(error))
                    elif failed is None or not here.answers or isinstance(error, CastRefused):
                        raise
                    else:
                        later = error  # of the answer's making, or behind what it mends
                else:
                    self._known.setdefault(root, set()).add(kind)
                    if is_new and exchanged() != before:
                        self._exchanging.add(root)
                    for module in here.answering:
                        self._answered.setdefault(module, set()).add(kind)
                    if failed is not None and not here.found:
                        # Cast where no frame tells the place, as in a block that was compiled by itself.
                        self._marked.setdefault(root, set()).add(kind)
                    return result
                # Other processes, in whose calls torch has refused nothing, would not exchange a second time.
                alone = not is_new and exchanged() != before
                if alone or not snapshot.restore():
                    hindrance = EXCHANGED if alone else WRITTEN
                    break
            assert failed is not None
            self._known.get(root, set()).discard(kind)
            self._looked_for.setdefault(root, set()).add(kind)
            reason = why_not_mended(failed, hindrance, got_past=later is not None)
            add_note(later or failed, f"{self.record.patch}: {refusal(failed, root)}{reason}")
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
        mode. A first call that is given a cache, which it may write to in place, runs under the mode at once, and so
        does one of a model that exchanges tensors with other processes.
        """
        if kind in self._marked.get(root, ()) or torch._C._is_tracing():  # operations of its own forward
            yield self.mode(root)
        elif kind in self._known.get(root, ()) or not self._looks_first(root, kind, snapshot):
            yield contextlib.nullcontext()
        yield self.mode(root, marks=True)
        while reader := self._next_reader():
            here.answers |= {reader}
            here.answering = here.readers = frozenset()
            yield self.mode(root, marks=True)

    def _next_reader(self) -> type | None:
        """The class of the innermost module around the refused operation that has read a packed weight's dtype.

        Others of its class are answered as well, and what is around it only where that does not do.
        """
        classes = map(type, reversed(here.refused_in))
        return next((cls for cls in classes if cls in here.readers and cls not in here.answers), None)

    def _looks_first(self, root: torch.nn.Module, kind: Kind, snapshot: Snapshot) -> bool:
        if kind in self._looked_for.get(root, ()):  # the last one failed, and could not be run again
            return True
        at_once = root in self._exchanging or (snapshot.holds_something and not torch.is_grad_enabled())
        return (at_once and not has_compiled_parts(root)) or self._is_silent(root)

    def _answers(self) -> bool:
        """A packed weight's dtype is read: whether the module that does is told what the weight was quantized from."""
        around = self._around(here.root)
        if not around:
            return False
        innermost, kinds = around[0], self._answered.get(around[0], ())
        if here.kind is None:  # outside of a watched call: see `needs_cast`
            return bool(kinds)
        here.readers |= {type(innermost)}
        if type(innermost) in here.answers:
            here.answering |= {innermost}
            return True
        return here.kind in kinds

    def _around(self, owner: torch.nn.Module | None) -> list[torch.nn.Module] | None:
        """The modules around what is running, the innermost first, up to ``owner``; None inside of a k-bit layer."""
        around = []
        for module in modules_around():
            if self._passes(module):
                return None
            around.append(module)
            if module is owner:
                break
        return around

    def _asked(
        self,
        owner: torch.nn.Module | None,
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
        around = self._around(owner)
        if around is None:
            return False
        if not around:
            return True  # in no module's forward
        innermost, kind = around[0], kind or here.kind
        self.record.tell(innermost, here.root or around[-1], func, operand, (given, to), kind)
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
        if not torch.compiler.is_compiling():  # behind a graph break
            return self._asked(None, False, None, func, operand, given, to)
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
