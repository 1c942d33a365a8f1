"""``run``: an unmodified program with the shim on."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .. import EnvironmentVariableError, _known, run
from ..engine.environment import LEVELS, Environment, canonical, is_killed
from ..patches import MOVED
from ..trace_file import TraceFileError

USAGE = """\
qlora-bf16-patch run [--enable PATCH] [--disable PATCH] [--strict] [--log LEVEL] [--trace FILE] [--quiet] PROGRAM ..."""


def add(commands: Any) -> None:
    parser = commands.add_parser("run", help="an unmodified program with the shim on", usage=USAGE)
    parser.takes_program = True
    for name, told in (("--enable", "a name or glob; may be repeated"), ("--disable", "a name or glob; wins")):
        patches: Any = parser.add_argument(name, action="append", default=[], metavar="PATCH", type=_patches, help=told)
        patches.completer = lambda **_: _known
    parser.add_argument("--strict", action="store_true", help="raise where an operand would be cast")
    parser.add_argument("--log", choices=LEVELS, help="tell on stderr what is patched and cast")
    parser.add_argument("--trace", metavar="FILE", help="write which dtypes the modules of its k-bit models met")
    parser.add_argument("--quiet", action="store_true", help="tell at the end what went wrong alone")
    parser.set_defaults(main=main, error=parser.error)


def _patches(text: str) -> str:
    """What an option says, which is told by its own name where no such patch is known."""
    if is_killed(os.environ):  # then nothing is read, and nobody has asked what third parties bring
        return text
    environment = Environment({}, _known, MOVED)
    for pattern in filter(None, map(str.strip, text.split(","))):
        if problem := environment.problem(pattern, list(map(canonical, _known))):
            raise argparse.ArgumentTypeError(problem)
    return text


def main(options: argparse.Namespace) -> int:
    if not options.program:
        options.error("which program? For example: train.py, -m lm_eval, trl sft")
    environ = dict(os.environ)
    wanted = (options.enable, options.disable, options.strict, options.log, options.trace, options.quiet)
    run.variables(environ, *wanted)
    try:
        run.run(options.program, environ)
    except (run.ProgramNotFoundError, OSError) as error:
        print(f"qlora-bf16-patch run: {error}", file=sys.stderr)
        return run.NOT_FOUND
    except (EnvironmentVariableError, TraceFileError) as error:
        options.error(str(error))
    return 0
