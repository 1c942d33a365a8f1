"""The registry: all patches, their states, and the calls that turn them on and off."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator

from . import versions
from .arrival import bring
from .entry import Decision, Entry, Problem
from .environment import Environment, canonical
from .imports import retry
from .installation import Installation
from .patch import Patch, Status
from .statuses import Statuses
from .switching import Find, block, matching, switch
from .wrapping import LOCK

logger = logging.getLogger("qlora_bf16_patch")


class Registry:
    """All known patches. Thread-safe; every call is idempotent.

    Decisions and what follows from them change under one lock. Whatever runs code of others (a factory, a library's
    import, a log handler, a warning filter) runs outside of it.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._entries: dict[str, Entry] = {}
        self._strict_blocks = 0
        self._lenient: list[Installation] = []  # those that strict blocks have made strict

    def register(self, patch: Patch) -> None:
        """Add a patch. It is installed when its library arrives, or at once if that is imported already.

        Raises:
            ValueError: another patch has this name, or the name is not canonical.
        """
        if patch.name != canonical(patch.name):
            raise ValueError(
                f"a patch's name is lower case, without '-': {canonical(patch.name)!r}, not {patch.name!r}"
            )
        bring([self._add(patch)])

    def register_entry_points(self, points: Iterable[importlib.metadata.EntryPoint]) -> None:
        """Add the patches that third parties' entry points name."""
        for point in points:
            self.register_entry_point(point)

    def register_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        """Add the patch that a third party's entry point names; one that cannot be loaded is told in the status."""
        name = canonical(point.name)
        try:
            patch = point.load()
            if not isinstance(patch, Patch) or patch.name != name:
                raise TypeError(f"{point.value} is {patch!r}, not a Patch named {name!r}")
            self.register(patch)
        except Exception as error:
            logger.warning("the entry point %s could not be loaded: %s", point.name, error)
            broken = Patch(name, "", (), point.value, f"entry point {point.value}")
            with contextlib.suppress(ValueError):  # another patch has the name
                bring([self._add(broken, Problem("failed", f"{type(error).__name__}: {error}"))])

    def enable(self, *names: str, force: bool = False) -> None:
        """Turn patches on, and patch anew what somebody has replaced since.

        Args:
            names: names or globs; none means those that are on by default or by the environment.
            force: also where the environment decided otherwise.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.
        """
        switch(self._matching(names, True), True, force)

    def disable(self, *names: str, force: bool = False) -> None:
        """Turn patches off; no names mean all. Otherwise arguments and errors are those of :meth:`enable`."""
        switch(self._matching(names, False), False, force)

    @contextlib.contextmanager
    def enabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches on inside the block, for the whole process; as before after it. Blocks may overlap."""
        with block(self._matching(names, True), True, force):
            yield

    @contextlib.contextmanager
    def disabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches off inside the block, for the whole process; as before after it. Blocks may overlap."""
        with block(self._matching(names, False), False, force):
            yield

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Patches raise inside the block where they would have cast what torch refuses, for the whole process.

        The error names the module's path, the operation, its dtypes and what to do. Blocks may overlap.
        """
        with LOCK:
            self._strict_blocks += 1
            for entry in self._entries.values():
                self._make_strict(entry.installation)
        try:
            yield
        finally:
            with LOCK:
                self._strict_blocks -= 1
                while self._lenient and not self._strict_blocks:
                    self._lenient.pop().strict = False

    def reset(self) -> None:
        """Forget all calls, those of open blocks as well: what the environment and the defaults say counts again."""
        with LOCK:
            entries = list(self._entries.values())
            for entry in entries:
                entry.layers = dict.fromkeys(entry.layers, entry.first)
        bring(entries)

    def uninstall(self) -> None:
        """Turn everything off and put back the very objects that were there before; ``enable`` brings patches back."""
        with LOCK:
            entries = list(self._entries.values())[::-1]
            for entry in entries:  # also the decisions of open blocks
                entry.layers = dict.fromkeys(entry.layers, Decision(False, "call (uninstall)", taken_out=True))
            while any([entry.installation.restore() for entry in entries]):
                pass  # a wrapper of ours that stood beneath another one of ours is free now

    def status(self) -> Statuses:
        """Every patch with its state, reason and who decided: a list of :class:`Status`, which prints as a table."""
        retry()
        with LOCK:
            rows = [
                (entry.patch, *entry.state(), entry.decision.by, entry.installation.told())
                for entry in self._entries.values()
            ]
        found = {name: versions.installed(name) for name in {patch.distribution for patch, *_ in rows}}
        return Statuses(
            Status(
                patch.name,
                state,
                reason,
                by,
                found[patch.distribution],
                patch.summary,
                notes,
                patch.reports,
                patch.pull_requests,
                patch.mended_in,
            )
            for patch, state, reason, by, notes in rows
        )

    def patches(self) -> list[Patch]:
        """Every patch, in the order in which they were registered."""
        with LOCK:
            return [entry.patch for entry in self._entries.values()]

    def installation(self, name: str) -> Installation:
        """What the patch ``name`` has put in place."""
        return self._entries[name].installation

    def _add(self, patch: Patch, problem: Problem | None = None) -> Entry:
        with LOCK:
            if patch.name in self._entries:
                raise ValueError(f"a patch named {patch.name!r} is registered already")
            first = Decision(*self._environment.decide(patch.name, patch.default))
            installation = Installation(patch.name, self._environment.strict)
            if self._strict_blocks:
                self._make_strict(installation)
            entry = self._entries[patch.name] = Entry(patch, first, installation, problem)
            return entry

    def _make_strict(self, installation: Installation) -> None:
        if not installation.strict:
            installation.strict = True
            self._lenient.append(installation)

    def _matching(self, patterns: tuple[str, ...], on: bool) -> Find:
        return lambda: matching(self._entries, self._environment, patterns, on)
