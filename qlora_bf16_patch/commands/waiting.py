"""A line on stderr while a command works: what it does, and how far it is. On a terminal alone; in a pipe nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .console import console


@contextlib.contextmanager
def waiting(steps: int) -> Iterator[Callable[[str], None]]:
    """Around what may take longer than two seconds. The line is gone when the block ends.

    Args:
        steps: how many there will be.

    Returns:
        A function, to be called with what each step does when it begins.

    Example:
        >>> with waiting(2) as step:
        ...     step("importing peft")
        ...     step("running the self-test")
    """
    terminal = console(stderr=True)
    if terminal is None:
        yield _nothing
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    what = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), BarColumn(bar_width=20), MofNCompleteColumn(), what)
    # What is printed in the block stays on stdout.
    with Progress(*columns, console=terminal, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=steps, completed=-1, visible=False)  # until the first step begins

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what, visible=True)

        yield step


def _nothing(what: str) -> None:
    pass
