"""The README's table of stacks, made from the records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .page import LIBRARIES, records
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
    return "\n".join(rows(records())) + "\n"


def rows(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A stack each: how many of the report's three steps generate, and how many runs of the sweep mismatch."""
    columns = (*LIBRARIES, "the report generates", "the sweep mismatches")
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for record in found.values():
        report = (record["failure"][f"bf16 {side}"]["generated"] for side in ("off", "on"))
        cells = [record["versions"].get(name, "") for name in LIBRARIES]
        cells += [" of 3 without, ".join(map(str, report)) + " with", swept(record)]
        yield f"| {' | '.join(cells)} |"


def swept(record: dict[str, Any]) -> str:
    if "sweep" not in record:
        return "not swept"
    sides = [sides for recipes in record["sweep"]["classes"].values() for sides in recipes.values()]
    off, on = (sum(side[name].get("mismatch", 0) for side in sides) for name in ("off", "on"))
    return f"{off} without, {on} with"
