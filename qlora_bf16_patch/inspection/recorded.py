"""What a trace has recorded, and what is told of it: it can be read without a model."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

from ..engine.tables import Section
from .differences import Difference, differences, known_phase
from .observed import CastSeen, Ran, Refused, from_row, text, to_row
from .saved import Saved
from .table import COLUMNS, casts, refusals, remarks, rich_table, tables

T = TypeVar("T", bound="Recorded")


class Recorded(Saved):
    """Counts of rows; see ``Trace`` for the attributes."""

    def __init__(self) -> None:
        self.ran: Counter[Ran] = Counter()
        self.casts: Counter[CastSeen] = Counter()
        self.refused: Counter[Refused] = Counter()
        self.never_ran: tuple[str, ...] = ()
        self.error: str | None = None
        self.error_phase: str | None = None

    @property
    def phases(self) -> tuple[str, ...]:
        """Those that were seen, in order.

        Examples:
            >>> trace.phases
            ('training', 'generation')
        """
        rows: list[Ran | CastSeen] = [*self.ran, *self.casts]
        return tuple(dict.fromkeys(row.phase for row in rows))

    def mismatches(self) -> list[CastSeen]:
        """The casts without which the model would have raised.

        Returns:
            Those of ``casts`` that were needed.

        Examples:
            >>> [(cast.operation, cast.operand, cast.given, cast.to) for cast in trace.mismatches()]
            [('linear', 'input', 'float32', 'bfloat16')]
        """
        return [cast for cast in self.casts if cast.needed]

    def spoken_mismatches(self) -> list[str]:
        """Lines that tell of ``mismatches()`` and of ``refused``, one for those that are alike.

        Returns:
            The lines; none where nothing was cast or refused.

        Examples:
            >>> trace.spoken_mismatches()
            ['generation: base_model.model.lm_head: linear has its input cast from float32 to bfloat16 by peft.boundary,
            2 times in 1 module']
        """
        return [*casts(self), *refusals(self)]

    def compare(
        self, left: str | None = None, right: str | None = None, other: Recorded | None = None
    ) -> list[Difference]:
        """Where precision differs between two phases, by default the first two of this trace.

        Args:
            left: a phase of this one.
            right: a phase of ``other``.
            other: another trace; this one, if left out.

        Returns:
            A row for each column of each module that is not the same, of the modules that ran in both.

        Raises:
            ValueError: there is no such phase.

        Examples:
            >>> [str(one) for one in trace.compare("training", "generation") if one.column == "casts"]
            ['base_model.model.lm_head (Linear): casts: none | linear input float32 to bfloat16']
        """
        other = other or self
        mine = known_phase(self, left, 0)
        return differences(
            self, mine, other, known_phase(other, right, 0 if other is not self and right is None else 1)
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "ran": [to_row(seen, count) for seen, count in self.ran.items()],
            "casts": [to_row(seen, count) for seen, count in self.casts.items()],
            "refused": [to_row(seen, count) for seen, count in self.refused.items()],
            "never_ran": list(self.never_ran),
            "error": self.error,
            "error_phase": self.error_phase,
        }

    @classmethod
    def _made_of(cls: type[T], found: dict[str, Any]) -> T:
        recorded = cls()
        recorded.ran.update(dict(from_row(Ran, row) for row in found["ran"]))
        recorded.casts.update(dict(from_row(CastSeen, row) for row in found["casts"]))
        recorded.refused.update(dict(from_row(Refused, row) for row in found.get("refused", ())))
        recorded.never_ran = tuple(map(text, found["never_ran"]))
        recorded.error, recorded.error_phase = (found.get(one) and text(found[one]) for one in ("error", "error_phase"))
        return recorded

    def _page(self) -> str:
        from .page.of_trace import page_of

        return page_of(self)

    def shown(self) -> tuple[list[Section], list[str]]:
        """What the tables are made of.

        Returns:
            A list of tables, each a title, names of columns and rows of words; and the lines beneath them.

        Examples:
            >>> [title for title, columns, rows in trace.shown()[0]]
            ['training', 'generation']
        """
        return [(phase, COLUMNS, rows) for phase, rows in tables(self)], remarks(self)

    def __rich__(self) -> Any:
        return rich_table(self)
