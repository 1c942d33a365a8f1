"""Runs architectures in a process of its own, which is restarted when one crashes or does not return."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from .results import Run, planned

_MEMORY = 8 << 30  # bytes
_SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One process at a time; it imports torch once and handles one request after the other."""

    def __init__(self, limit: float = 120) -> None:
        self.limit = limit
        self._process: Any = None

    def families(self) -> dict[str, str]:
        """The family of each architecture, by name."""
        found: dict[str, str] = self._ask(None)
        self._connection.recv()
        return found

    def run(self, architecture: str, recipe: str, sides: Sequence[bool]) -> Iterator[Run]:
        """Every planned run with its outcome; what a crash or the time limit cut off has that as its message."""
        left = planned(architecture, recipe, sides)
        try:
            answer = self._ask((architecture, recipe, tuple(sides)))
            while answer is not None:
                left.pop(0)
                yield answer
                answer = self._receive()
        except (EOFError, ConnectionError, TimeoutError) as error:
            reason = f"no answer in {self.limit:.0f} s" if isinstance(error, TimeoutError) else "the process died"
            self.stop()
            yield from (replace(run, outcome="error", message=reason) for run in left)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _ask(self, request: Any) -> Any:
        if self._process is None:
            self._connection, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        if not self._connection.poll(self.limit):
            raise TimeoutError
        return self._connection.recv()


def _serve(connection: Any) -> None:
    # A toy of a class that nobody knows yet may ask for all memory that there is.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    from . import runs

    runs.quiet()
    while True:
        request = connection.recv()
        if request is None:
            connection.send({name: toy.family for name, toy in runs.TOYS.items()})
        else:
            for run in runs.outcomes(*request):
                connection.send(run)
        connection.send(None)
