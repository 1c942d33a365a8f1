"""rich's console on a terminal, where rich is there; in a pipe plain lines are written, which nothing folds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console | None:
    """For standard output, or for standard error; None where it is no terminal, or there is no rich."""
    stream = sys.stderr if stderr else sys.stdout
    # Not rich's own answer: FORCE_COLOR makes it take a pipe for a terminal (rich 15.0.0, console.py, is_terminal).
    if stream is None or not stream.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=stderr)
