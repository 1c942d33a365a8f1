"""``python -m qlora_bf16_patch status``: what is patched, why, and who decided."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from typing import Any

from . import status
from .patches import CATALOGUE


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="qlora-bf16-patch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("status", help="a table of the patches")
    show.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(argv)

    absent = _import_targets()
    rows = [dataclasses.asdict(row) for row in status()]
    for row in rows:
        if row["state"] == "pending" and row["name"] in absent:
            row["state"], row["reason"] = "failed", absent[row["name"]]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _table(rows)
    return 0


def _import_targets() -> dict[str, str]:
    """Import each patch's module, as a script would; a broken library is a reason to show, not a crash."""
    absent = {}
    for patch in CATALOGUE:
        try:
            importlib.import_module(patch.module)
        except Exception as error:
            absent[patch.name] = f"{patch.module} cannot be imported: {type(error).__name__}: {error}"
    return absent


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
