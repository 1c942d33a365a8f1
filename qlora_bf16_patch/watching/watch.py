"""The watch over a patch's models: verdicts by module and kind of call, and what was cast."""

from __future__ import annotations

import contextlib
import dis
import functools
import logging
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack

from ..numerics.checkpoints import rerun_within
from ..numerics.mode import CastOnMismatch
from ..numerics.places import modules_around, path_of
from .events import Cast, name_of, spoken
from .kinds import Kind, kind_of
from .rewind import Snapshot

logger = logging.getLogger("qlora_bf16_patch")

# What torch says of dtypes that do not fit: its messages have no class of their own. It decides alone whether a call
# that failed is worth running again under the mode, which finds out whether dtypes were the reason.
_OF_DTYPES = re.compile(
    r"same dtype|dtypes?\b.*\bmatch|scalar ?type|mixed dtype|without overflow|query dtype|desired output type"
    r"|type promot|storage dtype|and (bias|weight) type|dtypes? to be|different dtypes?|input dtype"
    r"|but (got|found):? \S*(float|half|double)",
    re.IGNORECASE,
)
_ERRORS = (RuntimeError, TypeError, ValueError)
# A plain attribute: it survives deepcopy, and a pickle of the model loads without this package.
PATH = "_qlora_bf16_patch_path"

Call = Callable[[], Any]
# Functions that a host's tensors need handled, made for one run under the mode; it is told where it casts.
Special = Callable[[Callable[[Any, str, torch.dtype, torch.dtype], bool]], Mapping[Any, Callable[..., Any]]]


class _Here(threading.local):
    """The kind of the watched call that is running in this thread, if one is."""

    kind: Kind | None = None
    root: Any = None
    gradients = False  # whether it has any: a model may switch them off for a part, and so does a reentrant checkpoint
    found: frozenset[Any] = frozenset()  # modules that were marked by the call itself, so that their mode is not on yet


here = _Here()


def within_gradients() -> bool:
    """Whether the call is part of a watched one that has gradients, be they off at this place."""
    return not torch.compiler.is_compiling() and here.gradients


class Watch:
    """Finds the modules whose operations torch would refuse, and tells them.

    Args:
        patch: name of the patch that casts, for messages.
        mark: called with each module that is found and its path, to give it a forward that asks :meth:`needs_cast`.
        passes: whether a module's operations are left to torch, with all that it holds: k-bit layers and their adapters
            have patches of their own.
        is_silent: whether there is something in a model that torch would take and that yet has to be handled.
        special: see :class:`..numerics.mode.CastOnMismatch`.
        strict: asked at each cast whether to raise instead.
    """

    def __init__(
        self,
        patch: str,
        mark: Callable[[torch.nn.Module, str], None],
        passes: Callable[[torch.nn.Module], bool],
        is_silent: Callable[[torch.nn.Module], bool],
        special: Special,
        strict: Callable[[], bool],
    ) -> None:
        self._is_silent = is_silent
        self.patch, self._mark, self._passes, self._special, self._strict = patch, mark, passes, special, strict
        self.casts: dict[Cast, None] = {}  # an ordered set
        self._told: weakref.WeakKeyDictionary[torch.nn.Module, set[Cast]] = weakref.WeakKeyDictionary()
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()
        self._marked: weakref.WeakKeyDictionary[torch.nn.Module, set[Kind]] = weakref.WeakKeyDictionary()

    def mode(self, module: torch.nn.Module, marks: bool = False) -> CastOnMismatch:
        """The mode for a call of ``module``. With ``marks`` it marks the modules in which it casts."""
        asked = functools.partial(self._asked, module, marks)
        return CastOnMismatch(asked, self._special(asked))

    def while_compiling(self) -> contextlib.AbstractContextManager[Any]:
        """The mode, once. Dynamo traces it at no cost at run time, and has no frames to read."""
        if any(isinstance(mode, CastOnMismatch) for mode in _get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
            return contextlib.nullcontext()
        return CastOnMismatch(self._refused_while_compiling if self._strict() else None)

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
        here.kind, here.root, here.gradients = kind, root, torch.is_grad_enabled()
        try:
            if kind in self._marked.get(root, ()):  # operations of its own forward
                with self.mode(root):
                    return call()
            snapshot = Snapshot((*args, *kwargs.values()))
            if kind not in self._known.get(root, ()):
                # A call that can be run again has to raise first: what works runs as it is, in the first call, too. Not
                # so one that is given a cache, which it may write to in place.
                cached = snapshot.holds_something and not torch.is_grad_enabled() and not _has_compiled_parts(root)
                if cached or self._is_silent(root):
                    return self._look(root, kind, call)
                self._known.setdefault(root, set()).add(kind)
            try:
                return call()
            except _ERRORS as error:
                if not self._is_of_dtypes(error):
                    raise
                return self._surprised(root, kind, call, snapshot, error)
        finally:
            here.kind, here.root, here.gradients = None, None, False

    def _look(self, root: torch.nn.Module, kind: Kind, call: Call) -> Any:
        """A call under the mode, which marks the modules in which it casts."""
        here.found = frozenset()
        try:
            with self.mode(root, marks=True):
                result = call()
        except _ERRORS as error:
            if self._is_of_dtypes(error):
                _add_note(
                    error,
                    f"{self.patch} ran this call of {type(root).__name__} under its mode, and knows no cast that torch "
                    "would take. Cast where the operands are made, and please report it.",
                )
            raise
        self._known.setdefault(root, set()).add(kind)
        return result

    def _surprised(self, root: torch.nn.Module, kind: Kind, call: Call, snapshot: Snapshot, error: Exception) -> Any:
        """A branch ran that the first call of this kind did not take, and torch refused an operation there."""
        self._known[root].discard(kind)  # from now on it is watched again
        if not snapshot.restore():
            _add_note(
                error,
                f"{self.patch} had not seen this operation in a call of this kind, and cannot run the call again: it "
                "has written to its arguments. The next call of this kind is watched, and mended.",
            )
            raise error
        before = dict(self.casts)
        result = self._look(root, kind, call)
        if self.casts == before and kind not in self._marked.get(root, ()):
            # Cast where no frame tells the place, as in a block that was compiled by itself.
            self._marked.setdefault(root, set()).add(kind)
        return result

    def _is_of_dtypes(self, error: Exception) -> bool:
        """Whether torch has refused dtypes, and not the model's own code or strict mode."""
        text = str(error)
        return "QLORA_BF16_PATCH_STRICT" not in text and bool(_OF_DTYPES.search(text)) and not _is_the_models_own(error)

    def _asked(
        self, owner: torch.nn.Module, marks: bool, func: Any, operand: str, given: torch.dtype, to: torch.dtype
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
        innermost = around[0]
        path = innermost.__dict__.get(PATH) or path_of(innermost, here.root or owner)
        self.tell(innermost, Cast(path, type(innermost).__name__, name_of(func), spoken(operand), given, to))
        if marks and here.kind is not None:
            self._mark_one(around, here.kind)
        rerun_within(functools.partial(self.mode, innermost))
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

    def _refused_while_compiling(self, func: Any, operand: str, given: torch.dtype, to: torch.dtype) -> bool:
        cast = Cast("a compiled module", "torch.compile", name_of(func), spoken(operand), given, to)
        raise TypeError(cast.refusal(self.patch))

    def tell(self, module: torch.nn.Module, cast: Cast) -> None:
        """Tell a cast once, or raise in strict mode."""
        if self._strict():
            raise TypeError(cast.refusal(self.patch))
        self.casts[cast] = None
        told = self._told.setdefault(module, set())
        if cast not in told:
            told.add(cast)
            logger.info("%s", cast)


def _is_the_models_own(error: Exception) -> bool:
    """Whether a statement of the model's code has raised it; torch raises from C, or in its own Python."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__", "").startswith(("torch.", __name__.partition(".")[0])):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _has_compiled_parts(root: torch.nn.Module) -> bool:
    """Whether some of its modules are compiled by themselves: ``module.compile()``, or ``torch.compile(module)``."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        for module in root.modules()
    )


def _add_note(error: Exception, text: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
