"""Commands that start a program: their options end where it begins, and what follows is the program's own."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from typing import Any

COMPLETES = "_ARGCOMPLETE"  # set by the shell's function that argcomplete gives it


class Parser(argparse.ArgumentParser):
    """A command's parser.

    Attributes:
        takes_program: whether a program follows its options, as ``options.program``: argparse's own ``REMAINDER`` takes
            the options as well where nothing stands before them (bpo-17050).
    """

    takes_program = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        own, program = self._split(args or ()) if self.takes_program else (args, [])
        if program and COMPLETES in os.environ:  # its own options are not ours to complete
            self._actions.clear()
        options, unknown = super().parse_known_args(own, namespace)
        options.program = program
        return options, unknown

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Its own arguments, and the program with those that are left alone."""
        position = 0
        while position < len(arguments) and (name := arguments[position]).startswith("-"):
            if name == "--":
                return list(arguments[:position]), list(arguments[position + 1 :])
            action = self._option_string_actions.get(name)
            if action is None and not name.startswith("--"):  # Python's own, as in `run -m lm_eval`
                break
            position += 1 if action is None or action.nargs == 0 else 2
        return list(arguments[:position]), list(arguments[position:])


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a command goes on, and end; otherwise do nothing."""
    if COMPLETES in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)
