"""The README's table of stacks, made from the records."""

from __future__ import annotations

from typing import Any

from .. import pages
from .page import LIBRARIES, mismatches, records
from .processes import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- Written by `python -m tests.versions --write`. -->\n"
END = "<!-- End. -->\n"


def readme() -> str:
    """The README with the table as the records have it."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    columns = (*LIBRARIES, "the report generates", "the sweep mismatches")
    return "\n".join(pages.table(columns, map(cells, records().values()))) + "\n"


def cells(record: dict[str, Any]) -> list[str]:
    """Of a stack how many of the report's three steps generate, and how many runs of the sweep mismatch."""
    off, on = (record["failure"][f"bf16 {side}"]["generated"] for side in ("off", "on"))
    libraries = (record["versions"].get(name, "") for name in LIBRARIES)
    return [*libraries, f"{off} of 3 without, {on} with", swept(record)]


def swept(record: dict[str, Any]) -> str:
    return "{} without, {} with".format(*mismatches(record)) if "sweep" in record else "not swept"
