"""Blocks in which patches raise where they would have cast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from .installation import Installation
from .wrapping import LOCK


class Strictness:
    """How many such blocks are open, and what they have made strict. Its fields are used under the lock."""

    def __init__(self) -> None:
        self._blocks = 0
        self._lenient: list[Installation] = []  # those that were not strict before

    def reach(self, installation: Installation) -> None:
        """Make it strict, too, where a block is open."""
        if self._blocks and not installation.strict:
            installation.strict = True
            self._lenient.append(installation)

    @contextlib.contextmanager
    def block(self, find: Callable[[], Iterable[Installation]]) -> Iterator[None]:
        """Open one, in which what ``find`` gives is strict."""
        with LOCK:
            self._blocks += 1
            for installation in find():
                self.reach(installation)
        try:
            yield
        finally:
            with LOCK:
                self._blocks -= 1
                while self._lenient and not self._blocks:
                    self._lenient.pop().strict = False
