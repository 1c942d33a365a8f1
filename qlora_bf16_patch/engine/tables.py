"""Tables for people, as text and as HTML; no library is asked for either."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table's title, the names of its columns, its rows of words."""

# A notebook's own style aligns cells to the right, and a browser would drop the spaces by which a tree is told.
_CELL = 'style="text-align: left; vertical-align: top; white-space: pre-wrap"'
_TITLE = 'style="text-align: left; font-weight: bold"'


class Shown:
    """Shows itself as tables: printed, in IPython, and in a notebook."""

    def shown(self) -> tuple[Iterable[Section], Iterable[str]]:
        """The tables, and the lines beneath them."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(*self.shown())

    def _repr_html_(self) -> str:
        return as_html(*self.shown())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def as_text(sections: Iterable[Section], lines: Iterable[str]) -> str:
    """Columns as wide as their longest word."""
    told: list[str] = []
    for title, columns, rows in sections:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        told += [title, ""] if title else []
        for row in (columns, *rows):
            told.append("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
        told.append("")
    return "\n".join([*told, *lines]).rstrip("\n")


def as_html(sections: Iterable[Section], lines: Iterable[str]) -> str:
    """Plain tables in the notebook's own style."""
    from html import escape  # not at the top: its table of entities is large for an import that is to be cheap

    def row_of(cell: str, words: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{cell} {_CELL}>{escape(word)}</{cell}>" for word in words) + "</tr>"

    parts = []
    for title, columns, rows in sections:
        caption = f"<caption {_TITLE}>{escape(title)}</caption>" if title else ""
        body = "".join(row_of("td", row) for row in rows)
        parts.append(f"<table>{caption}<thead>{row_of('th', columns)}</thead><tbody>{body}</tbody></table>")
    return "\n".join([*parts, *(f"<p>{escape(line)}</p>" for line in lines)])
