"""``doctor``: what is here, what is patched and still needed, who is in the way, and whether the shim works."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ..run import NOT_FOUND, ProgramNotFoundError
from .waiting import waiting

USAGE = "qlora-bf16-patch doctor [--json] [PROGRAM ...]"
DESCRIPTION = """Tells what a bug report needs: the machine, releases, each patch with its state and what this release
does by itself, who else patches, and the reported failure without the shim and with it. With a program, which is run to
its end first, the patches are those of its processes. Exit status 0 only where the shim works."""
_SAID = {  # of each stage (doctor/observer.py)
    "patches": "importing the libraries",
    "strangers": "looking for who else patches",
    "machine": "looking at the machine",
    "packages": "reading which releases are installed",
    "needed": "running what each patch promises, without it and with it",
    "selftest": "generating with a tiny 4-bit Llama, without the shim and with it",
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="whether the shim works here, or in a program", usage=USAGE, description=DESCRIPTION
    )
    parser.takes_program = True
    parser.add_argument("--json", action="store_true", help="for machines; a program's own output goes to stderr then")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    from ..doctor.program import watched  # here, since `run` is not to wait for what it does not need
    from ..doctor.report import report
    from ..doctor.text import text

    program = None
    if options.program:
        try:
            program = watched(options.program, dict(os.environ), sys.stderr.fileno() if options.json else None)
        except (ProgramNotFoundError, OSError) as error:
            print(f"qlora-bf16-patch doctor: {error}", file=sys.stderr)
            return NOT_FOUND
    with waiting(len(_SAID)) as step:
        found = report(lambda stage: step(_SAID[stage]), program)
    print(json.dumps(found, indent=2) if options.json else text(found))
    return 0 if found["works"] else 1
