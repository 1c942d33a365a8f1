"""What ``enable``, ``disable``, their blocks and those of ``strict`` do to registered patches."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from .arrival import bring
from .entry import Decision, Entry
from .environment import Environment, UnknownPatchError, canonical
from .installation import Installation
from .wrapping import LOCK

logger = logging.getLogger("qlora_bf16_patch")

Find = Callable[[], list[Entry]]
"""Finds the patches that are meant; it is called under the lock."""


def matching(
    entries: Mapping[str, Entry], environment: Environment, patterns: tuple[str, ...], on: bool
) -> list[Entry]:
    """The patches that names or globs mean, or none of either.

    Raises:
        UnknownPatchError: one matches no patch.
    """
    if not patterns:
        return [entry for entry in entries.values() if not on or entry.patch.default or entry.first.on]
    for pattern in patterns:
        problem = environment.problem(pattern, entries)
        if problem:
            raise UnknownPatchError(problem)
    wanted = [canonical(pattern) for pattern in patterns]
    return [entry for name, entry in entries.items() if any(fnmatch.fnmatchcase(name, one) for one in wanted)]


def switch(find: Find, on: bool, force: bool) -> None:
    """Decide, and do what follows; what the environment forbids is logged."""
    with LOCK:
        entries = find()
        refused = [message for entry in entries if (message := _decide(entry, on, force))]
    bring(entries)
    for message in refused:
        logger.warning("%s", message)


@contextlib.contextmanager
def block(find: Find, on: bool, force: bool) -> Iterator[None]:
    """A block's patches are decided on a layer of its own, which goes at its end, whatever came over it since."""
    token = object()
    with LOCK:
        entries = find()
        for entry in entries:
            entry.layers[token] = entry.decision
        refused = [message for entry in entries if (message := _decide(entry, on, force))]
    try:
        bring(entries)
        for message in refused:
            logger.warning("%s", message)
        yield
    finally:
        with LOCK:
            for entry in entries:
                entry.layers.pop(token, None)
        bring(entries)


class Strictness:
    """How many blocks of ``strict`` are open, and what they have made strict. Its fields are used under the lock."""

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


def _decide(entry: Entry, on: bool, force: bool) -> str | None:
    """Note a call's decision; the environment outranks it, and the message says so."""
    if not entry.first.by.startswith("environment") or force:
        entry.decision = Decision(on, "call (forced)" if force else "call")
        return None
    entry.decision = entry.first  # also after an uninstall
    state = "on" if entry.first.on else "off"
    return None if entry.first.on == on else f"{entry.patch.name} stays {state}, by {entry.first.by}"
