"""What ``status()`` gives: a list that shows itself as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .patch import Patch, Status
from .tables import Section, Shown
from .versions import reaches

COLUMNS = ("name", "state", "reason", "decided_by", "version")


class Statuses(Shown, list[Status]):
    """The patches' rows; printed, or as the last line of a notebook's cell, a table with the notes beneath it.

    Examples:
        >>> print(str(qlora_bf16_patch.status()).splitlines()[1])
        bitsandbytes.linear4bit  active  bitsandbytes.nn.modules:Linear4bit.forward is patched  default  ...
    """

    def shown(self) -> tuple[list[Section], list[str]]:
        """What the table is made of.

        Returns:
            A list of tables, each a title, names of columns and rows of words; and the lines beneath them.

        Examples:
            >>> ((title, columns, rows),), notes = qlora_bf16_patch.status().shown()
            >>> columns
            ('name', 'state', 'reason', 'decided_by', 'version')
        """
        rows = [[str(getattr(row, column) or "") for column in COLUMNS] for row in self]
        notes = [f"{row.name}: {note}" for row in self for note in row.notes]
        return [("", COLUMNS, rows)], [*notes, *_what_can_go(self)]

    def upstream(self) -> Upstream:
        """When each patch can go, and its upstream threads.

        Returns:
            Another table, which prints as this one does.

        Examples:
            >>> print(str(qlora_bf16_patch.status().upstream()).splitlines()[1])
            bitsandbytes.linear4bit  ...  not yet  ...
        """
        return Upstream(self)


class Upstream(Shown):
    """When each patch can go; threads without their owners, which a row's ``reports`` and ``pull_requests`` have."""

    def __init__(self, rows: Iterable[Status]) -> None:
        self._rows = list(rows)

    def shown(self) -> tuple[list[Section], list[str]]:
        reports = [[row.name, row.version or "", can_go(row), _threads(row.reports)] for row in self._rows]
        mending = [[row.name, _threads(row.pull_requests)] for row in self._rows if row.pull_requests]
        sections: list[Section] = [("", ("name", "version", "can go", "reports"), reports)]
        if mending:
            sections.append(("", ("name", "pull requests that mend a part of it, or set out to"), mending))
        return sections, []


def can_go(row: Status) -> str:
    """When a patch can go: not yet, with a release of its library, or now, since that one is installed."""
    if not row.mended_in:
        return "not yet"
    return "now" if reaches(row.version, row.mended_in) else f"with {row.mended_in}"


def _what_can_go(rows: Sequence[Status]) -> list[str]:
    """One line, where any patch knows its upstream."""
    if not any(row.mended_in or row.reports or row.pull_requests for row in rows):
        return []
    told = [f"{row.name} {can_go(row)}" for row in rows if row.mended_in]
    none = "none yet, since no release does by itself all that one of them does"
    return [f"can go: {', '.join(told) or none} (qlora-bf16-patch status --upstream)"]


def _threads(references: Iterable[str]) -> str:
    return " ".join(reference.rpartition("/")[2] for reference in references)


def status_of(patch: Patch, state: str, reason: str, by: str, version: str | None, notes: tuple[str, ...]) -> Status:
    """What is told of one patch."""
    upstream = patch.reports, patch.pull_requests, patch.mended_in
    return Status(patch.name, state, reason, by, version, patch.summary, notes, *upstream)
