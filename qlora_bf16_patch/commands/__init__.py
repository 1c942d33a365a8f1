# PYTHON_ARGCOMPLETE_OK
"""``qlora-bf16-patch``: see what is patched, and start programs with the shim on. Each command is a file here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import doctor, report, run, status
from .program import Parser, complete

DESCRIPTION = "See what is patched and in which dtypes a model computes, and start programs with the shim on."
EPILOG = "COMMAND --help tells more of a command; doctor tells whether the shim works here."

# Each has ``add(commands)``, which adds its parser, with the function that runs it as the default of ``main``.
COMMANDS = (status, doctor, report, run)


def parser() -> argparse.ArgumentParser:
    """That of the whole command line."""
    result = argparse.ArgumentParser(prog="qlora-bf16-patch", description=DESCRIPTION, epilog=EPILOG)
    commands = result.add_subparsers(dest="command", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its name and arguments, by default those of the process.

    Returns:
        The exit status: 0 where all is well, 2 for arguments that are wrong.
    """
    whole = parser()
    complete(whole)
    options = whole.parse_args(argv if argv is not None else sys.argv[1:])
    try:
        status = int(options.main(options))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + 13  # as of a shell for SIGPIPE
    return status
