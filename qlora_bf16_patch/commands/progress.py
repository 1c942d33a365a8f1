"""What a command that takes longer than two seconds says meanwhile, on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error with rich's spinner; nothing where that is no terminal, or rich is not there.

    Args:
        first: what it says until it is told something else.

    Yields:
        A function that changes the line.
    """
    try:
        from rich.console import Console
    except ImportError:
        yield lambda text: None
        return
    if sys.stderr is None:
        yield lambda text: None
        return
    with Console(stderr=True).status(first) as status:  # which shows nothing where that is no terminal
        yield status.update
