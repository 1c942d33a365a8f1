"""What people look at as tables with remarks, by rich where it is there; and a trace as such ones."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from ..engine.tables import Section
from .folding import folded, labels

COLUMNS = ("module", "class", "input", "weight", "compute", "autocast", "output", "modules", "calls")


def cells(label: str, row: Any) -> tuple[str, ...]:
    """A row of words."""
    seen = row.seen
    return (
        label,
        seen.module,
        ", ".join(seen.inputs),
        seen.weight or "",
        seen.compute or "",
        seen.autocast or "",
        ", ".join(seen.outputs),
        str(row.modules),
        str(row.count),
    )


def tables(trace: Any) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """For each phase its rows."""
    rows = folded(trace.ran)
    for phase in trace.phases:
        shown = [row for row in rows if row.seen.phase == phase]
        yield phase, [cells(*pair) for pair in zip(labels(row.path for row in shown), shown, strict=True)]


def remarks(trace: Any) -> list[str]:
    """What is told beside the tables."""
    if not (trace.ran or trace.casts or trace.refused or trace.error):
        told = ["No module was seen to run: call the model in the block. Of compiled code none is seen."]
        return told + _never_ran(trace)
    told = [*casts(trace), *refusals(trace)]
    told += [] if told or trace.error else ["Nothing was cast where torch would have raised."]
    told += _computed(trace)
    if trace.error:
        told.append(f"It ended with torch's refusal in {trace.error}")
    return told + _never_ran(trace)


def _never_ran(trace: Any) -> list[str]:
    shown = ", ".join(trace.never_ran[:4]) + (", ..." if len(trace.never_ran) > 4 else "")
    modules = f"{len(trace.never_ran)} module{'s' * (len(trace.never_ran) > 1)}"
    return [f"{modules} with a weight never ran: {shown}"] if shown else []


def _computed(trace: Any) -> Iterator[str]:
    """What layers have cast to compute as they do: all of a class in a line."""
    rows = defaultdict(list)
    for row in folded(trace.casts):
        if not row.seen.needed:
            rows[dataclasses.replace(row.seen, path="")].append(row)
    for seen, alike in rows.items():
        modules, count = sum(row.modules for row in alike), sum(row.count for row in alike)
        what = f"{seen.operand} cast from {seen.given} to {seen.to} by {seen.patch}, {_times(count)}"
        yield f"{seen.phase}: {modules} {seen.module} had {'its' if modules == 1 else 'their'} {what}"


def casts(trace: Any) -> list[str]:
    """A line for those casts without which torch would have raised, one for each that are alike."""
    return [f"{row.seen.phase}: {_cast(row)}" for row in folded(trace.casts) if row.seen.needed]


def refusals(trace: Any) -> list[str]:
    """A line for what :func:`caught` gives, one for those that are alike."""
    rows = folded(caught(trace))
    return [f"{row.seen.phase}: {dataclasses.replace(row.seen, path=row.path)}, {_times(row.count)}" for row in rows]


def caught(trace: Any) -> dict[Any, int]:
    """What torch refused, but for the error that ended the trace, which is told by itself."""
    # Run again and mended by a patch further out. Of a cast in the traced model itself the path is the one from there.
    mended = {(path, cast.module, cast.phase) for cast in trace.casts if cast.needed for path in (cast.path, "")}
    counts = {
        seen: count - (trace.error == f"{seen.path}: {seen.message}" and trace.error_phase == seen.phase)
        for seen, count in trace.refused.items()
        if (seen.path, seen.module, seen.phase) not in mended
    }
    return {seen: count for seen, count in counts.items() if count}


def _cast(row: Any) -> str:
    cast, modules = dataclasses.replace(row.seen, path=row.path), f"{row.modules} module{'s' * (row.modules > 1)}"
    return f"{cast}, {_times(row.count)} in {modules}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def rich_table(trace: Any) -> Any:
    """A group of rich's tables."""
    return as_rich(*trace.shown())


def as_rich(sections: Iterable[Section], told: Iterable[str]) -> Any:
    """Tables as a group of rich's, and what is told beside them."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    parts: list[Any] = []
    for title, columns, rows in sections:
        table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
        for row in rows:
            table.add_row(*(Text(word) for word in row))
        parts.append(table)
    return Group(*parts, *(Text(line) for line in told))
