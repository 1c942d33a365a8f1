"""``status``: what is patched, why, and who decided."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from typing import Any

from .. import status
from ..patches import CATALOGUE
from .waiting import waiting


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="a table of the patches")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    found = rows()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _table(found)
    return 0


def rows() -> list[dict[str, Any]]:
    """The patches' rows with every library imported, as a script would; a broken one is a reason, not a crash."""
    absent = {}
    with waiting(len(CATALOGUE)) as step:
        for patch in CATALOGUE:
            step(f"importing {patch.module}")
            try:
                importlib.import_module(patch.module)
            except Exception as error:
                absent[patch.name] = f"{patch.module} cannot be imported: {type(error).__name__}: {error}"
    found = [dataclasses.asdict(row) for row in status()]
    for row in found:
        if row["state"] == "pending" and row["name"] in absent:
            row["state"], row["reason"] = "failed", absent[row["name"]]
    return found


def _table(rows: list[dict[str, Any]]) -> None:
    columns = ("name", "state", "reason", "decided_by", "version")
    notes = [f"{row['name']}: {note}" for row in rows for note in row["notes"]]
    try:
        from rich.console import Console
        from rich.table import Column, Table
    except ImportError:
        for row in rows:
            print("  ".join(str(row[column]) for column in columns))
        print(*notes, sep="\n", end="\n" * bool(notes))
        return
    # Names are what a user types; a long word of a reason is not cut off.
    table = Table(*(Column(column, no_wrap=column == "name", overflow="fold") for column in columns))
    for row in rows:
        table.add_row(*(str(row[column] or "") for column in columns))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
