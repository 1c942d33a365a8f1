"""``report``: a trace or a report that was written to a file, as a table or as a page."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .console import console


def add(commands: Any) -> None:
    parser = commands.add_parser("report", help="what a trace or a report in a file says")
    parser.add_argument("file", metavar="FILE", help="what Trace.to_json, Report.to_json or `run --trace` has written")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--mismatches", action="store_true", help="what torch refuses outside of autocast, alone")
    how.add_argument("--html", metavar="OUT", help="write a page for a browser to this file instead")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    from ..inspection.files import read  # loads torch

    try:
        found = read(options.file)
        if options.html:
            if os.path.exists(options.html) and os.path.samefile(options.html, options.file):
                raise ValueError(f"--html {options.html} would overwrite FILE: name another file for the page.")
            found.to_html(options.html)
            return 0
    except (ValueError, OSError) as error:
        print(f"qlora-bf16-patch report: {error}", file=sys.stderr)
        return 2
    if options.mismatches:
        print("\n".join(found.spoken_mismatches()) or "No mismatch.")
    else:
        _show(found)
    return 0


def _show(found: Any) -> None:
    """By rich on a terminal that is wide enough; else plain lines, since a tree in folded columns is none."""
    terminal = console()
    if terminal is not None:
        from rich.table import Table

        shown, whole = found.__rich__(), terminal.options.update(width=10_000)
        tables = [part for part in shown.renderables if isinstance(part, Table)]
        if all(terminal.measure(table, options=whole).maximum <= terminal.width for table in tables):
            terminal.print(shown)
            return
    print(found)
