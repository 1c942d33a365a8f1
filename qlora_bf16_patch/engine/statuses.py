"""What ``status()`` gives: a list that shows itself as a table."""

from __future__ import annotations

from .patch import Status
from .tables import Section, Shown

COLUMNS = ("name", "state", "reason", "decided_by", "version")


class Statuses(Shown, list[Status]):
    """The patches' rows; printed, or as the last line of a notebook's cell, a table with the notes beneath it."""

    def shown(self) -> tuple[list[Section], list[str]]:
        rows = [[str(getattr(row, column) or "") for column in COLUMNS] for row in self]
        return [("", COLUMNS, rows)], [f"{row.name}: {note}" for row in self for note in row.notes]
