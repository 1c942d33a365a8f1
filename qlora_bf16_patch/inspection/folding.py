"""Repeated layers as one row: ``layers.[0-31].mlp.up_proj``."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

_NUMBER = "#"


@dataclasses.dataclass
class Row:
    """Modules of one kind.

    Attributes:
        path: with the numbers of all of them, ``layers.[0-31].mlp.up_proj``.
        modules: how many they are.
        count: how often they ran, all together.
        seen: one of them.
        members: their paths.
    """

    path: str
    modules: int
    count: int
    seen: Any
    members: tuple[str, ...] = ()


def folded(counts: Mapping[Any, int]) -> list[Row]:
    """Rows of what is the same but for the numbers in its path, in the order of the first one."""
    groups: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
    for seen, count in counts.items():
        groups[dataclasses.replace(seen, path=pattern_of(seen.path))].append((seen, count))
    rows = []
    for members in groups.values():
        paths = dict.fromkeys(seen.path for seen, _ in members)
        rows.append(
            Row(
                named(paths),
                len(paths),
                sum(count for _, count in members),
                members[0][0],
                tuple(paths),
            )
        )
    return rows


def named(paths: Collection[str]) -> str:
    """One name for paths that are the same but for their numbers."""
    numbers = [[int(part) for part in path.split(".") if part.isdecimal()] for path in paths]
    return _filled(pattern_of(next(iter(paths))), [ranges(column) for column in zip(*numbers, strict=True)])


def labels(paths: Iterable[str]) -> Iterator[str]:
    """A tree: each path without the part that an earlier one has said, a space deeper for each of those."""
    above: list[str] = []
    for path in paths:
        while above and not path.startswith(above[-1] + "." if above[-1] else ""):
            above.pop()
        said = above[-1] if above else ""
        yield " " * len(above) + (path[len(said) :].lstrip(".") or "(the model)")
        above.append(path)


def ranges(numbers: Iterable[int]) -> str:
    """``0-3, 5`` of 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def pattern_of(path: str) -> str:
    """``layers.#.mlp`` of ``layers.3.mlp``."""
    return ".".join(_NUMBER if part.isdecimal() else part for part in path.split("."))


def _filled(pattern: str, columns: list[str]) -> str:
    filled = iter(columns)
    words = (next(filled) if part == _NUMBER else part for part in pattern.split("."))
    return ".".join(f"[{word}]" if "-" in word or "," in word else word for word in words)
