"""Rows as a page: ``page.html`` with ``page.css`` and ``page.js`` in it, nothing else is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .rows import Dtypes, Row, Seen, rows

# A dtype's short name, which is always written, and its colour in page.css; an unknown one is grey.
_CHIPS = {
    "float64": ("fp64", "fp64"),
    "float32": ("fp32", "fp32"),
    "bfloat16": ("bf16", "bf16"),
    "float16": ("fp16", "fp16"),
    "float8_e4m3fn": ("e4m3", "fp8"),
    "float8_e5m2": ("e5m2", "fp8"),
    "nf4": ("nf4", "4bit"),
    "fp4": ("fp4", "4bit"),
    "4-bit": ("4-bit", "4bit"),
    "int8": ("int8", "int8"),
}


def to_html(
    seen: Iterable[Seen],
    columns: Sequence[str],
    *,
    title: str,
    captions: Mapping[str, str | None] | None = None,
    meanings: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    never_ran: Sequence[str] = (),
) -> str:
    """A self-contained page: it loads nothing, works from a disk, and is readable without its script.

    Args:
        seen: what was seen in the modules, in the order in which they ran.
        columns: names of the phases.
        title: the page's heading.
        captions: dtype of the autocast that a column ran under, None for none; a module that ran under another says
            so. A column that is not among them is of modules that did not run.
        meanings: what the kinds of marks mean, where no note says it.
        notes: sentences for the head of the page.
        never_ran: paths of modules that no call has reached.
    """
    found = rows(seen, columns)
    kinds = sorted({(mark.kind, mark.heavy) for row in found for mark in row.marks}, key=lambda kind: kind[::-1])
    script = _text("page.js")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals["chip"] = _chip
    return environment.from_string(_text("page.html")).render(
        title=title,
        columns=columns,
        captions=captions or {},
        rows=found,
        notes=notes,
        never_ran=never_ran,
        legend=sorted(_dtypes(found), key=list(_CHIPS).index),
        marks=[(kind, (meanings or {}).get(kind), heavy) for kind, heavy in kinds],
        members={str(number): row.members for number, row in enumerate(found) if len(row.members) > 1},
        modules=sum(len(row.members) for row in found),
        css=Markup(_text("page.css")),
        script=Markup(script),
        # The page may run this script and load nothing, whatever a module is called.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _chip(dtype: str) -> tuple[str, str]:
    return _CHIPS.get(dtype, (dtype, "other"))


def _dtypes(found: Iterable[Row]) -> set[str]:
    """Those on the page that have a colour."""
    names: set[str | None] = set()
    for what in (one.what for row in found for cell in row.cells for one in cell):
        if isinstance(what, Dtypes):
            names.update(what.inputs, what.outputs, (what.weight, what.compute, what.autocast))
        else:
            names.update((what.given, what.to))
    return {name for name in names if name in _CHIPS}
