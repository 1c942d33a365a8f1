"""The watch over a patch's models: which modules need casts in which kinds of call, found by looking.

The first call of each kind runs under the function mode: an operation that torch refuses is cast where it stands, and
the module around it keeps the mode for calls of that kind. All other calls run as they are. An operation that torch
refuses in one of those is caught at the innermost module, which runs again under the mode where nothing forbids it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch

from ..engine.binding import unbind
from ..engine.installation import Installation
from ..numerics.autocast import NOTHING
from ..numerics.checkpoints import rerun_within
from ..numerics.compiling import leave_the_mode_uncompiled, trace_attributes_without_modes
from ..numerics.dtypes import SOURCE
from ..numerics.mode import ERRORS, Asked, CastOnMismatch, Written, is_on, refusal_at_hand, refused
from ..numerics.places import forward_of, frames, module_of
from .again import hindrance, memory, state_of, unchanged
from .events import record_of
from .handlers import is_handled
from .kinds import Kind, kind_of
from .refusals import HINDRANCE, is_of_dtypes, is_torchs_or_ours, refusal, why_it_stays
from .running import has_compiled_parts, here
from .watched import Watched, parts_of, see_training

# What a quantizer's tensors need handled, made for one run under the mode. The first argument is told where it casts;
# the second is asked whether a read of a dtype that is not what it seems is answered with another; the third
# is told of activations that are cast to integers.
Handlers = Callable[[Asked, Callable[[], bool], Callable[..., None]], Mapping[Any, Callable[..., Any]]]
_MOST = 1000  # kinds that are remembered of a model


class Watch:
    """Finds the modules whose operations torch would refuse.

    Args:
        installation: of the patch that casts.
        passes: whether a module's operations are left to torch, with all that it holds: k-bit layers and their adapters
            have patches of their own.
        register: called with a model, its path and whether it is looked at. It gives the modules their forwards, since
            some may have been put in, and returns those that lose theirs after the call.
        handlers: functions that a quantizer's tensors need handled.
    """

    def __init__(
        self,
        installation: Installation,
        passes: Callable[[torch.nn.Module], bool],
        register: Callable[..., list[torch.nn.Module]],
        handlers: Handlers,
    ) -> None:
        self.record = record_of(installation)
        self._installation, self._passes, self._register, self._handlers = installation, passes, register, handlers
        # By model the kinds of call: True for one that is known, False for one that the program has left once.
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, dict[Kind, bool]] = weakref.WeakKeyDictionary()

    def mode(self, owner: Watched | None, marks: bool = False, kind: Kind | None = None) -> CastOnMismatch:
        """The mode for a call of a module.

        Args:
            owner: the module's forward; nothing outside of it is cast.
            marks: whether the modules in which it casts are marked.
            kind: the kind of call that it is a part of, where that is over: a checkpoint's in the backward.
        """
        if "torch._dynamo" in sys.modules:
            leave_the_mode_uncompiled()
        asked = functools.partial(self._asked, owner, marks, kind)
        return CastOnMismatch(asked, self._handlers(asked, self._answers, self._keep_source))

    def while_compiling(self) -> contextlib.AbstractContextManager[Any]:  # pragma: no cover: Dynamo traces it
        """The mode, once. Dynamo traces it at no cost at run time, and has no frames to read."""
        if is_on():
            return contextlib.nullcontext()
        trace_attributes_without_modes()
        return CastOnMismatch(self._asked_while_compiling)

    def call(self, entry: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a model, or of a stack of layers, in a thread where no watched one is running."""
        root = entry.instance()
        caller = module_of(sys._getframe(2))
        if caller is not root and type(caller) is type(root):  # a copy that shares the attributes of the original
            self._register(caller, path=entry.path)
            return vars(caller)["forward"](*args, **kwargs)
        see_training(root, args, kwargs)
        kind = (*kind_of(root, args, kwargs), *parts_of(root))
        known = self._known.setdefault(root, {})
        # torch.jit's tracer cannot run a forward again.
        looks = torch._C._is_tracing() or not (known.get(kind) or has_compiled_parts(root))
        others = [] if known.get(kind) else self._register(root, path=entry.path, looks=True)
        try:
            with self._during(entry, kind, looks):
                result = entry(*args, **kwargs)
        finally:
            for module in others if looks else ():
                self._release(module)
        if (looks or kind in entry.kinds) and isinstance(result, (types.GeneratorType, types.CoroutineType)):
            steps = self._steps(entry, kind, result)
            return steps if isinstance(result, types.GeneratorType) else _awaited(steps)
        return result

    def _release(self, module: torch.nn.Module) -> None:
        """A module in which nothing was cast carries nothing. (Another thread that looks marks what is around it.)"""
        forward = self._installation.bound.get(module)
        if isinstance(forward, Watched) and not (forward.kinds or forward.answered):
            unbind(self._installation, module)
            self._installation.unbound.pop(module, None)

    @contextlib.contextmanager
    def _during(self, entry: Watched, kind: Kind, looks: bool) -> Iterator[None]:
        root = entry.instance()
        known = self._known[root]
        here.kind, here.root, here.gradients = kind, root, torch.is_grad_enabled()
        try:
            with self.mode(entry, marks=True) if looks else NOTHING:
                yield
        except BaseException as error:
            if isinstance(error, ERRORS) and is_of_dtypes(error):
                known.pop(kind, None)
                if hasattr(error, "add_note"):  # pragma: no branch: Python 3.11 has it first
                    error.add_note(f"{self._installation.name}: {refusal(error, root)}{why_it_stays(error)}")
            else:  # a program that leaves its forwards by an exception, each time, has its kinds of call, too
                known[kind] = kind in known
            raise
        else:
            if len(known) > _MOST:
                known.clear()
            known[kind] = True
        finally:
            for result in filter(lambda cast: cast is not None, [reference() for reference in here.casts]):
                vars(result).pop(SOURCE, None)
            here.__dict__.clear()

    @types.coroutine  # so that it can be awaited as well
    def _steps(self, entry: Watched, kind: Kind, generator: Any) -> Generator[Any, Any, Any]:
        """A forward that yields, or awaits: each part of it runs as the call's own."""
        step = functools.partial(generator.send, None)
        while True:
            try:
                with self._during(entry, kind, looks=True):
                    try:
                        item = step()
                    except StopIteration as stop:
                        return stop.value
                step = functools.partial(generator.send, (yield item))
            except GeneratorExit:
                generator.close()
                raise
            except BaseException as error:
                if generator.gi_frame is None if isinstance(generator, types.GeneratorType) else not generator.cr_frame:
                    raise
                step = functools.partial(generator.throw, error)

    def may_run_again(self, forward: Watched, error: Exception, args: Any, kwargs: Any) -> bool:
        """Whether a module's forward, in which torch has refused dtypes, is to run again: for the innermost one first.

        Either the operation came in a call that did not run under the mode, or the mode had nothing to cast: a packed
        weight's dtype was read then, in this forward.
        """
        if not self._installation.on or torch._C._is_tracing() or not is_of_dtypes(error):
            return False
        reads = forward in here.readers and here.answers is not forward
        was_run_again = HINDRANCE in error.__dict__
        if error.__dict__.get(HINDRANCE) or ((was_run_again or refused(error) is not None) and not reads):
            return False
        if is_handled(error, _frames_of_the_program()):
            return False
        error.__dict__[HINDRANCE] = hindered = hindrance(forward.instance(), args, kwargs, self._passes)
        return hindered is None

    def run_again(self, forward: Watched, args: Any, kwargs: Any) -> Any:
        """A module's forward, under the mode; as long as nothing is cast it must not write to what it was given."""
        failed, here.failed = here.failed, None
        before, here.answers = here.answers, forward if forward in here.readers else here.answers
        here.unchanged = functools.partial(unchanged, state_of(forward.instance(), self._passes))
        try:
            with self.mode(forward, marks=True) as mode:
                mode.untouchable = memory(forward.instance(), args, kwargs, self._passes)
                return forward.original(*args, **kwargs)
        except Written:
            failed.__dict__[HINDRANCE] = "it has changed something that it was given, or that it holds"
            raise failed from None
        except ERRORS as error:
            error.__dict__.setdefault(HINDRANCE, None)
            raise
        finally:
            here.answers, here.unchanged = before, None
            del failed  # its traceback holds this frame

    def _answers(self) -> bool:
        """A packed weight's dtype is read: whether the module that does is told what the weight was quantized from."""
        _, forward = self._around(None) or (None, None)
        if forward is None:
            return False
        if here.answers is forward:
            forward.answered |= {here.kind}
        else:
            here.readers |= {forward}
        return here.kind in forward.answered or (here.kind is None and bool(forward.answered))

    def _keep_source(self, result: torch.Tensor, source: torch.Tensor) -> None:
        """Activations are cast to integers. In a module that has read a packed weight's dtype these remember those.

        A quantized layer that is given the integers takes the activations.
        """
        innermost, forward = self._around(None) or (None, None)
        if innermost is None or forward is None or forward not in here.readers:
            return
        kind, root = here.kind, here.root

        def taken(given: torch.dtype, to: torch.dtype) -> None:
            self.record.tell(innermost, "dtype", "packed weight", given, to, kind, root or innermost)
            forward.kinds |= {kind}
            forward.answered |= {kind}

        vars(result)[SOURCE] = source, taken
        here.casts = (*here.casts, weakref.ref(result))

    def _around(self, owner: Watched | None) -> tuple[Any, Any] | None:
        """The innermost module around what is running, and the innermost of our forwards; None inside of a k-bit layer.

        They differ for a hook of the module, and for a module that came after the model was registered. Where no call
        of a module is running (a generator's code, a checkpoint's in the backward) they are the mode's own.
        """
        innermost = None
        for frame in frames():
            module = module_of(frame)
            if module is None:
                continue
            if self._passes(module):
                return None
            innermost = innermost or module
            forward = forward_of(frame)
            if isinstance(forward, Watched):
                return innermost, forward
        return innermost or (None if owner is None else owner.instance()), owner

    def _asked(
        self,
        owner: Watched | None,
        marks: bool,
        kind: Kind | None,
        func: Any,
        operand: str,
        given: torch.dtype,
        to: torch.dtype,
    ) -> bool:
        """Called by the mode of ``owner`` before a cast: finds the place, records it, marks it."""
        if torch.compiler.is_compiling():
            return True  # a part that is compiled by itself: there are no frames to read
        if not self._installation.on:
            return False
        found = self._around(owner)
        if found is None:
            return False
        (innermost, forward), kind = found, kind or here.kind
        if innermost is None:
            return True
        if here.unchanged is not None and not here.unchanged():
            raise Written
        here.unchanged = None
        if not self.tell(innermost, func, operand, given, to, kind):
            return False
        if marks and forward is not None:
            forward.kinds |= {here.kind}
        rerun_within(functools.partial(self.mode, forward, kind=kind))
        return True

    def _asked_while_compiling(self, func: Any, operand: str, given: torch.dtype, to: torch.dtype) -> bool:
        if not torch.compiler.is_compiling():  # behind a graph break
            return self._asked(None, False, None, func, operand, given, to)
        return self.record.tell(None, func, operand, given, to)

    def tell(
        self, module: Any, operation: Any, operand: str, given: torch.dtype, to: torch.dtype, kind: Kind | None = None
    ) -> bool:
        """Record a cast that is about to be made, by the mode or by a module's own forward.

        Args:
            module: the innermost one around it.
            operation: torch's function, or its name.
            operand: which of its operands is cast.
            given: its dtype.
            to: the dtype that it is cast to.
            kind: of the call.

        Returns:
            Whether it may be made: not where the program handles torch's error itself.

        Raises:
            CastRefused: in strict mode.
        """
        if not torch.compiler.is_compiling() and self.record.is_new(module, operation, operand, given, to):
            if is_handled(refusal_at_hand(), _frames_of_the_program()):
                return False
        return self.record.tell(module, operation, operand, given, to, kind)


def _frames_of_the_program() -> list[Any]:
    """The frames from the running code to the outermost forward of ours, torch's and ours left out."""
    found: list[Any] = []
    end = 0
    for frame in frames():
        if forward_of(frame) is not None or (frame.f_code.co_name == "_steps" and frame.f_globals is globals()):
            end = len(found)
        elif not is_torchs_or_ours(frame):
            found.append(frame)
    return found[:end]


async def _awaited(steps: Any) -> Any:
    return await steps
