"""A trace as a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..table import caught, remarks
from .page import to_html
from .rows import Dtypes, Mark, Seen

if TYPE_CHECKING:
    from ..recorded import Recorded

_MEANINGS = {
    "cast": "cast by the layer's patch to what it computes in",
    "mismatch": "torch would have refused it: a patch cast it",
    "refused": "torch refused it",
}


def page_of(trace: Recorded) -> str:
    """A column for each phase; casts are outlined, and what torch refused, or would have, is so heavily."""
    refused = (one.phase for one in trace.refused)
    columns = tuple(dict.fromkeys(filter(None, (*trace.phases, *refused, trace.error_phase))))
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


def _seen(trace: Recorded, model: str) -> Iterator[Seen]:
    for ran, count in trace.ran.items():
        dtypes = Dtypes(ran.inputs, ran.weight, ran.compute, ran.autocast, ran.outputs)
        yield Seen(ran.path, ran.module, ran.phase, dtypes, count)
    for cast, count in trace.casts.items():
        kind, what = ("mismatch", f"{cast.operation} {cast.operand}") if cast.needed else ("cast", cast.operand)
        mark = Mark(kind, what, cast.given, cast.to, f"by {cast.patch}", heavy=cast.needed)
        yield Seen(cast.path, cast.module, cast.phase, mark, count)
    for refused, count in caught(trace).items():
        yield Seen(refused.path, refused.module, refused.phase, Mark("refused", refused.message, heavy=True), count)
    if trace.error and trace.error_phase:
        path, _, message = trace.error.partition(": ")
        yield Seen(path if path != model else "", "", trace.error_phase, Mark("refused", message, heavy=True))


def _autocast(trace: Recorded) -> dict[str, str | None]:
    """For each phase the autocast of the innermost module that all the others are inside of.

    The outermost one may be called outside of it: accelerate puts autocast around the ``forward``, inside of the call.
    """
    phases: dict[str, dict[str, str | None]] = {}
    for ran in trace.ran:
        phases.setdefault(ran.phase, {}).setdefault(ran.path, ran.autocast)
    return {phase: _of_the_whole(found) for phase, found in phases.items()}


def _of_the_whole(autocast: dict[str, str | None]) -> str | None:
    paths = list(autocast)  # as they were entered
    whole = paths[0]
    for position, path in enumerate(paths):
        if path and not all(other.startswith(f"{path}.") for other in paths[position + 1 :]):
            break
        whole = path
    return autocast[whole]
