"""``qlora-bf16-patch``: ``status`` says what is patched, why, and who decided; ``run`` starts a program with it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import EnvironmentVariableError, run, status
from .engine.environment import LEVELS
from .patches import CATALOGUE

RUN = "qlora-bf16-patch run [--enable PATCH] [--disable PATCH] [--strict] [--log LEVEL] PROGRAM ..."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="qlora-bf16-patch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("status", help="a table of the patches")
    show.add_argument("--json", action="store_true", help="for machines")
    start = commands.add_parser("run", help="an unmodified program with the shim on", usage=RUN)
    start.add_argument("--enable", action="append", default=[], metavar="PATCH", help="a name or glob; may be repeated")
    start.add_argument("--disable", action="append", default=[], metavar="PATCH", help="a name or glob; wins")
    start.add_argument("--strict", action="store_true", help="raise where an operand would be cast")
    start.add_argument("--log", choices=LEVELS, help="tell on stderr what is patched and cast")
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, program = split(arguments)
    options = parser.parse_args(own)
    if options.command == "run":
        return _run(start, options, program)

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


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of ``run``, and the program with its own, which are left alone."""
    if arguments[:1] != ["run"]:
        return arguments, []
    position = 1
    while position < len(arguments) and arguments[position].startswith("--"):
        if arguments[position] == "--":
            return arguments[:position], arguments[position + 1 :]
        position += 2 if arguments[position] in ("--enable", "--disable", "--log") else 1
    if arguments[position : position + 1] == ["-h"]:
        return arguments, []
    return arguments[:position], arguments[position:]


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace, program: list[str]) -> int:
    if not program:
        parser.error("which program? For example: train.py, -m lm_eval, trl sft")
    environ = dict(os.environ)
    run.variables(environ, options.enable, options.disable, options.strict, options.log)
    try:
        run.run(program, environ)
    except (run.ProgramNotFoundError, OSError) as error:
        print(f"qlora-bf16-patch run: {error}", file=sys.stderr)
        return run.NOT_FOUND
    except EnvironmentVariableError as error:
        parser.error(str(error))
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
