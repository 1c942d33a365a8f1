"""``qlora_bf16_patch.assert_dtypes(model, ...)``: the dtypes of a model that stands, and no mismatch while it runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NoReturn

import torch

from ..hosts.given import expect_kbit_model
from ..watching.events import CastRefused
from ..watching.refusals import is_of_dtypes, modules_on, refusal
from ..watching.running import has_compiled
from .casts import Casts, listening
from .expected import Wanted, Wrong, adapting, computing, matching
from .folding import Row, folded
from .hooks import hooked
from .observed import CastSeen

ADVICE = (
    "Run it under `torch.autocast(device, dtype=torch.bfloat16)`, as training runs, or cast the operand where it is "
    "made. Where the shim is to cast it, say `allow_casts=True`."
)


class DtypeAssertionError(AssertionError):
    """Dtypes are not as they were asserted.

    Attributes:
        failures: what the message tells, a row a module: ``Wrong``, or ``CastSeen``; empty where an operation was
            refused.

    Args:
        message: what is wrong, and what to do.

    Examples:
        >>> from qlora_bf16_patch.inspection import DtypeAssertionError
        >>> try:
        ...     with qlora_bf16_patch.assert_dtypes(model):
        ...         logits = model(**inputs).logits
        ... except DtypeAssertionError as error:
        ...     [str(one) for one in error.failures]
        ['base_model.model.lm_head: linear has its input cast from float32 to bfloat16 by peft.boundary']
    """

    def __init__(self, message: str, failures: tuple[Wrong | CastSeen, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures


def check(
    model: torch.nn.Module,
    dtypes: Mapping[str, Wanted] | None = None,
    compute: Wanted | None = None,
    adapters: Wanted | None = None,
) -> None:
    """Look at a model, which is not run; arguments and errors are those of :func:`qlora_bf16_patch.assert_dtypes`."""
    __tracebackhide__ = True  # pytest shows the line that asserts, as with torch.testing.assert_close
    expect_kbit_model(model, "assert_dtypes", "assert")
    named = dict(model.named_modules(remove_duplicate=False))
    found = computing(named, compute) + matching(named, dtypes or {})
    found += adapting(named, adapters) if adapters is not None else []
    if found:
        name = type(model).__name__
        _fail(f"{name} has other dtypes than was asserted:", Counter(found), dict.fromkeys(one.advice for one in found))


def refuse_casts(casts: Counter[CastSeen], model: torch.nn.Module, when: str) -> None:
    """Fail where there are any.

    Raises:
        DtypeAssertionError: it lists them.
    """
    __tracebackhide__ = True
    if casts:
        _fail(f"Operands were cast in {type(model).__name__} {when}, where torch would have raised:", casts, [ADVICE])


class Assertion:
    """A context manager: in its block torch refuses no dtypes in ``model``, and no patch has to cast any there.

    It looks at the casts that the patches tell, so it costs nothing where there are none. Hooks wait for the first
    module that runs, and are taken out then.

    Args:
        model: one with k-bit layers.
        allow_casts: whether the shim may cast.
    """

    def __init__(self, model: torch.nn.Module, allow_casts: bool = False) -> None:
        self._model, self._allow_casts, self._entered_already = model, allow_casts, False

    def __enter__(self) -> Assertion:
        if self._entered_already:
            raise RuntimeError(
                "This block of assert_dtypes has begun already: write assert_dtypes(model) for each block."
            )
        self._entered_already = True
        self._stack, self._hooks, self._ran = contextlib.ExitStack(), contextlib.ExitStack(), False
        self._casts = Casts(self._model)
        self._stack.enter_context(listening(self._casts.heard))
        self._stack.enter_context(self._hooks)
        if not has_compiled(self._model):  # Dynamo guards on hooks
            self._hooks.enter_context(hooked(self._model, self._entered, lambda *_: None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        self._stack.close()
        self._entered_already = False
        if isinstance(error, CastRefused):
            raise DtypeAssertionError(str(error)) from error
        if isinstance(error, Exception) and is_of_dtypes(error) and self._is_the_models(error):
            raise DtypeAssertionError(f"{refusal(error, self._model)}. {ADVICE}") from error
        if error is not None:
            return
        if not self._ran and not has_compiled(self._model):
            raise ValueError(
                f"No module of {type(self._model).__name__} ran in the block of assert_dtypes, so it asserts nothing. "
                "Call the model, or its generate, in there; without a block write `assert_dtypes(model, ...)` alone."
            )
        if not self._allow_casts:
            refuse_casts(self._casts.seen, self._model, "in the block")

    def _entered(self, *_: object) -> None:
        if torch.compiler.is_compiling():
            return
        self._ran = True
        self._hooks.close()

    def _is_the_models(self, error: Exception) -> bool:
        ours = {id(module) for module in self._model.modules()}
        return any(id(module) in ours for module in modules_on(error))


def _fail(what: str, counts: Counter[Wrong] | Counter[CastSeen], advice: Iterable[str]) -> NoReturn:
    """Raise an error that lists them, layers that are alike in one line."""
    __tracebackhide__ = True
    rows = [f"  {dataclasses.replace(row.seen, path=row.path)}{_often(row)}" for row in folded(counts)]
    raise DtypeAssertionError("\n".join([what, *rows, *advice]), tuple(counts))


def _often(row: Row) -> str:
    words = [f"{row.count} times"] if row.count > row.modules else []
    words += [f"in {row.modules} modules"] if row.modules > 1 else []
    return f", {' '.join(words)}" if words else ""
