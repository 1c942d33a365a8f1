"""A trace as a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..table import remarks
from .page import to_html
from .rows import Dtypes, Mark, Seen

if TYPE_CHECKING:
    from ..trace import Trace

_MEANINGS = {
    "cast": "a patch cast it: without the shim torch would have refused",
    "refused": "torch refused it",
}


def page_of(trace: Trace) -> str:
    """A column for each phase, the casts outlined, and what torch refused outlined heavily."""
    columns = tuple(dict.fromkeys(filter(None, (*trace.phases, trace.error_phase))))
    model = next((seen.module for seen in trace.ran if not seen.path), "")
    return to_html(
        _seen(trace, model),
        columns,
        title=f"What {model or 'the model'} computed in",
        captions=_autocast(trace),
        meanings=_MEANINGS,
        notes=remarks(trace),
        never_ran=trace.never_ran,
    )


def _seen(trace: Trace, model: str) -> Iterator[Seen]:
    for ran, count in trace.ran.items():
        dtypes = Dtypes(ran.inputs, ran.weight, ran.compute, ran.autocast, ran.outputs)
        yield Seen(ran.path, ran.module, ran.phase, dtypes, count)
    for cast, count in trace.casts.items():
        mark = Mark("cast", f"{cast.operation} {cast.operand}", cast.given, cast.to, f"by {cast.patch}")
        yield Seen(cast.path, cast.module, cast.phase, mark, count)
    if trace.error and trace.error_phase:
        path, _, message = trace.error.partition(": ")
        yield Seen(path if path != model else "", "", trace.error_phase, Mark("refused", message, heavy=True))


def _autocast(trace: Trace) -> dict[str, str | None]:
    """For each phase the autocast around the outermost module, which was entered first."""
    found: dict[str, str | None] = {}
    for ran in trace.ran:
        found.setdefault(ran.phase, ran.autocast)
    return found
