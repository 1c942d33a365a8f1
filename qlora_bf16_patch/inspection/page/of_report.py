"""A report as a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .page import to_html
from .rows import Dtypes, Mark, Seen

if TYPE_CHECKING:
    from ..findings.finding import Finding
    from ..report import Report

_COLUMNS = ("weight, compute", "stored in", "other parameters", "trained", "to expect")
_NOTHING = "Nothing to expect was found."


def page_of(report: Report) -> str:
    """What each module holds, beside what is to be expected of it; mismatches are outlined heavily."""
    seen = list(_seen(report))
    used = {one.column for one in seen if one.what != Dtypes()}
    columns = tuple(column for column in _COLUMNS if column in used)
    return to_html(
        [one for one in seen if one.column in columns],
        columns,
        title=f"What {report.model} holds",
        notes=list(dict.fromkeys(f"{one.kind}: {_follows(one)}" for one in report.findings)) or [_NOTHING],
    )


def _seen(report: Report) -> Iterator[Seen]:
    for held in report.held:
        others = tuple(dtype for dtype in held.parameters if dtype != held.weight)
        of_column = (Dtypes((), held.weight, held.compute), *map(Dtypes, (_some(held.storage), others, held.trainable)))
        for column, dtypes in zip(_COLUMNS, of_column, strict=False):
            if column == _COLUMNS[0] or dtypes != Dtypes():
                yield Seen(held.path, held.module, column, dtypes)
    for found in report.findings:
        given_to = found.given or None, found.to or None
        mark = Mark(found.kind, found.what, *given_to, _follows(found), heavy=found.kind == "mismatch")
        yield Seen(found.path, found.module, _COLUMNS[-1], mark)


def _follows(finding: Finding) -> str:
    return f"{finding.meaning}. Advice: {finding.advice}."


def _some(dtype: str | None) -> tuple[str, ...]:
    return () if dtype is None else (dtype,)
