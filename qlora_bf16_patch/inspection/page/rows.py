"""What a page shows, be it of a trace or of a report: a tree of modules, in which layers that are alike are one row."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from ..folding import Row as Folded
from ..folding import folded, named, pattern_of


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """What a module was seen with; the attributes are those of :class:`~..observed.Ran`."""

    inputs: tuple[str, ...] = ()
    weight: str | None = None
    compute: str | None = None
    autocast: str | None = None
    outputs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
    """What stands out in a module; its cell is outlined.

    Attributes:
        kind: a word, ``cast`` or ``refused``.
        what: in words, ``linear input``.
        given: dtype that was met, where one is known.
        to: dtype that it became, or should have been.
        more: what else is told where somebody points at it.
        heavy: whether the outline is.
    """

    kind: str
    what: str
    given: str | None = None
    to: str | None = None
    more: str = ""
    heavy: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """One of those in a module, in a column.

    Attributes:
        path: the module's.
        module: its class; empty where it is not known.
        column: the phase.
        what: the dtypes, or a mark.
        count: how often; 0 where nothing is counted.
    """

    path: str
    module: str
    column: str
    what: Dtypes | Mark
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Counted:
    """Dtypes or a mark in a cell, with how often it was seen in each of the row's modules."""

    what: Dtypes | Mark
    each: tuple[int, ...]

    @property
    def is_mark(self) -> bool:
        return isinstance(self.what, Mark)

    @property
    def unit(self) -> str:
        return "time" if self.is_mark else "call"

    @property
    def times(self) -> str:
        """``320 calls, 4 a module``; empty where nothing is counted."""
        total, least, most = sum(self.each), min(self.each), max(self.each)
        spread = f", {least if least == most else f'{least} to {most}'} a module" if len(self.each) > 1 else ""
        return f"{total} {self.unit}{'s' * (total != 1)}{spread}" if total else ""


@dataclasses.dataclass(frozen=True)
class Row:
    """Modules that are alike.

    Attributes:
        path: with the numbers of all of them.
        label: the part of it that the row above it has not said.
        within: of which layers, where they are not those of the row above it.
        depth: in the tree.
        module: their class.
        members: the path of each.
        cells: for each column what was seen there.
    """

    path: str
    label: str
    within: str
    depth: int
    module: str
    members: tuple[str, ...]
    cells: tuple[tuple[Counted, ...], ...]

    @property
    def marks(self) -> list[Mark]:
        return [one.what for cell in self.cells for one in cell if isinstance(one.what, Mark)]


@dataclasses.dataclass(frozen=True)
class _Module:
    """A module, and what was seen in it by column; modules that differ in their path's numbers alone are one row."""

    path: str
    module: str
    cells: tuple[tuple[Dtypes | Mark, ...], ...]


def rows(seen: Iterable[Seen], columns: Sequence[str]) -> list[Row]:
    """The rows of a page, below each the ones that are inside of it.

    Args:
        seen: in the order in which the modules ran.
        columns: the columns' names.
    """
    counts: dict[tuple[str, str], dict[str, dict[Dtypes | Mark, int]]] = {}
    for one in seen:
        name = one.module or next((name for path, name in counts if path == one.path), "")
        cell = counts.setdefault((one.path, name), {column: {} for column in columns})[one.column]
        cell[one.what] = cell.get(one.what, 0) + one.count
    modules = (
        _Module(path, name, tuple(tuple(sorted(found[column], key=_order)) for column in columns))
        for (path, name), found in counts.items()
    )
    result = []
    for row, above, depth in _arranged(folded(dict.fromkeys(modules, 1))):
        name, here = row.seen.module, [counts[path, row.seen.module] for path in row.members]
        cells = tuple(
            tuple(Counted(what, tuple(module[column][what] for module in here)) for what in cell)
            for column, cell in zip(columns, row.seen.cells, strict=True)
        )
        result.append(Row(row.path, *_label(row, above), depth, name, row.members, cells))
    return result


def _order(what: Dtypes | Mark) -> tuple[bool, str]:
    return isinstance(what, Mark), repr(what)


def _arranged(alike: list[Folded]) -> Iterator[tuple[Folded, list[Folded], int]]:
    """Each row, those of the module around it, and how deep it is."""
    groups: dict[str, list[Folded]] = defaultdict(list)
    for row in alike:
        groups[pattern_of(row.seen.path)].append(row)
    inside: dict[str | None, list[str]] = defaultdict(list)
    for pattern in groups:
        inside[_above(pattern, groups)].append(pattern)

    def walk(pattern: str, above: list[Folded], depth: int) -> Iterator[tuple[Folded, list[Folded], int]]:
        yield from ((row, above, depth) for row in groups[pattern])
        for child in inside[pattern]:
            yield from walk(child, groups[pattern], depth + 1)

    for outermost in inside[None]:
        yield from walk(outermost, [], 0)


def _above(pattern: str, groups: Collection[str]) -> str | None:
    """The nearest module around it that has a row."""
    while pattern:
        pattern = pattern.rpartition(".")[0]
        if pattern in groups:
            return pattern
    return None


def _label(row: Folded, above: list[Folded]) -> tuple[str, str]:
    """The part of a path that the rows above have not said, and of which of their modules it is where not of all."""
    if not above:
        return row.path or "(the model)", ""
    said = len(above[0].members[0].split(".")) if above[0].members[0] else 0
    around = {".".join(path.split(".")[:said]) for path in row.members}
    label = ".".join(row.path.split(".")[said:])
    if around == {path for one in above for path in one.members}:
        return label, ""
    within = named(around).split(".")
    numbers = [index for index, part in enumerate(within) if part.startswith("[") or part.isdecimal()]
    return label, ".".join(within[numbers[0] - 1 : numbers[-1] + 1])
