"""``status``: what is patched, why, and who decided."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..doctor.rows import problems, with_everything_imported
from ..engine.patch import Status
from ..engine.statuses import Statuses
from ..engine.tables import Shown
from ..patches import CATALOGUE
from .console import console
from .waiting import waiting


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="a table of the patches")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 where a patch that is on is not in place, or none is on"
    )
    parser.add_argument(
        "--upstream", action="store_true", help="when each patch can go, and the upstream reports and pull requests"
    )
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    with waiting(len(CATALOGUE)) as step:
        found = with_everything_imported(step)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        rows = Statuses(Status(**row) for row in found)
        _table(rows.upstream() if options.upstream else rows)
    wrong = problems(found) if options.check else []
    for sentence in wrong:
        print(f"qlora-bf16-patch status: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _table(found: Shown) -> None:
    """By rich on a terminal; a pipe is given plain lines, which are not folded."""
    terminal = console()
    if terminal is None:
        print(found)
        return
    from rich.table import Column, Table

    # Names are what a user types; a long word of a reason is not cut off.
    sections, notes = found.shown()
    for _, columns, rows in sections:
        table = Table(*(Column(column, no_wrap=column == "name", overflow="fold") for column in columns))
        for row in rows:
            table.add_row(*row)
        terminal.print(table)
    for note in notes:
        terminal.print(note, markup=False, highlight=False, soft_wrap=True)
