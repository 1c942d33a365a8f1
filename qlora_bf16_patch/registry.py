"""The registry: all patches, their states, and the calls that turn them on and off. It imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from .importing import half_initialised, retry, when_imported
from .installation import Factory, Installation
from .toggles import Toggles, UnknownPatchError, canonical, nearest

logger = logging.getLogger("qlora_bf16_patch")
Decision = tuple[bool, str]


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch, as data.

    Attributes:
        name: ``library.thing``, lower case.
        module: the module whose import brings the target.
        attribute: dotted path of the target inside the module, ``Class.method`` or a function.
        load: returns the factory; called only once the target's library is there, so it may import torch.
        summary: one line for the status.
        distribution: the library whose version gates the patch.
        requires: version range of the distribution, as in a requirement.
        default: whether the patch is on where nobody decided.
        reports: upstream threads that it answers, ``owner/repo#N``.
    """

    name: str
    module: str
    attribute: str
    load: Callable[[], Factory]
    summary: str
    distribution: str
    requires: str = ""
    default: bool = True
    reports: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Status:
    """The state of one patch.

    Attributes:
        name: of the patch.
        state: pending, active, off, skipped, failed or shadowed.
        reason: why, for a reader.
        decided_by: who turned it on or off: default, environment (with the variable) or call.
        version: of the patch's library, None where it is not installed.
        summary: what the patch does.
        notes: what the patch noticed while it ran.
    """

    name: str
    state: str
    reason: str
    decided_by: str
    version: str | None
    summary: str
    notes: tuple[str, ...] = ()


class Registry:
    """All known patches. Thread-safe; every call is idempotent."""

    def __init__(self, toggles: Toggles) -> None:
        self._toggles = toggles
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.RLock()

    def register(self, patch: Patch) -> None:
        """Add a patch. It is installed when its library arrives, or at once if that is imported already.

        Raises:
            ValueError: another patch has this name, or the name is not canonical.
        """
        if patch.name != canonical(patch.name):
            raise ValueError(
                f"a patch's name is lower case, without '-': {canonical(patch.name)!r}, not {patch.name!r}"
            )
        with self._lock:
            if patch.name in self._entries:
                raise ValueError(f"a patch named {patch.name!r} is registered already")
            decision = self._toggles.decide(patch.name, patch.default)
            entry = self._entries[patch.name] = _Entry(patch, decision, Installation(self._toggles.strict))
        self._apply(entry)

    def register_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        """Add the patch that a third party's entry point names; one that cannot be loaded is told in the status."""
        try:
            patch = point.load()
            if not isinstance(patch, Patch) or patch.name != canonical(point.name):
                raise TypeError(f"{point.value} is {patch!r}, not a Patch named {canonical(point.name)!r}")
            self.register(patch)
        except Exception as error:
            name = canonical(point.name)
            logger.warning("the entry point %s could not be loaded: %s", point.name, error)
            broken = Patch(name, "", "", lambda: NotImplemented, f"entry point {point.value}", "")
            with self._lock:
                entry = _Entry(broken, self._toggles.decide(name, True), Installation())
                entry.problem = ("failed", f"{type(error).__name__}: {error}")
                self._entries.setdefault(name, entry)

    def enable(self, *names: str, force: bool = False) -> None:
        """Turn patches on.

        Args:
            names: names or globs; none means all.
            force: also where the environment decided.

        Raises:
            UnknownPatchError: a name matches no patch; nothing is changed.
        """
        self._switch(names, True, force)

    def disable(self, *names: str, force: bool = False) -> None:
        """Turn patches off; arguments and errors as those of :meth:`enable`."""
        self._switch(names, False, force)

    @contextlib.contextmanager
    def enabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches on inside the block, for the whole process; as before after it. Blocks may overlap."""
        with self._layer(names):
            self.enable(*names, force=force)
            yield

    @contextlib.contextmanager
    def disabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches off inside the block, for the whole process; as before after it. Blocks may overlap."""
        with self._layer(names):
            self.disable(*names, force=force)
            yield

    def uninstall(self) -> None:
        """Turn everything off and put back the very objects that were there before; ``enable`` brings patches back."""
        with self._lock:
            entries = list(self._entries.values())[::-1]
            for entry in entries:
                entry.layers = dict.fromkeys(entry.layers, (False, "call (uninstall)"))  # also those of open blocks
            while any([entry.installation.restore() for entry in entries]):
                pass  # a wrapper of ours that stood beneath another one of ours is free now

    def status(self) -> list[Status]:
        """Every patch with its state, reason and who decided."""
        retry()
        with self._lock:
            return [self._status(entry) for entry in self._entries.values()]

    def installation(self, name: str) -> Installation:
        """What the patch ``name`` has put in place."""
        return self._entries[name].installation

    def _switch(self, patterns: tuple[str, ...], on: bool, force: bool) -> None:
        with self._lock:
            entries = [self._entries[name] for name in self._matching(patterns)]
            for entry in entries:
                on_by_environment, decider = entry.first
                if decider.startswith("environment") and not force:
                    if on_by_environment != on:
                        state = "on" if on_by_environment else "off"
                        logger.warning("%s stays %s, by %s", entry.patch.name, state, decider)
                    entry.decision = entry.first  # also after an uninstall
                else:
                    entry.decision = (on, "call (forced)" if force else "call")
                self._apply(entry)

    def _matching(self, patterns: tuple[str, ...]) -> list[str]:
        names = list(self._entries)
        if not patterns:
            return names
        found: dict[str, None] = {}
        for pattern in patterns:
            matches = fnmatch.filter(names, canonical(pattern))
            if not matches:
                raise UnknownPatchError(f"unknown patch {pattern!r}.{nearest(pattern, names)}")
            found.update(dict.fromkeys(matches))
        return list(found)

    @contextlib.contextmanager
    def _layer(self, patterns: tuple[str, ...]) -> Iterator[None]:
        """A block's patches are decided on a layer of its own, which goes at its end, whatever came over it since."""
        token = object()
        with self._lock:
            for name in self._matching(patterns):
                entry = self._entries[name]
                entry.layers[token] = entry.decision
        try:
            yield
        finally:
            with self._lock:
                for entry in self._entries.values():
                    if entry.layers.pop(token, None):
                        self._apply(entry)

    def _apply(self, entry: _Entry) -> None:
        """Make the installation what ``entry.on`` says. A patch that was never on hooks nothing."""
        if entry.on and not entry.hooked and entry.patch.module:
            entry.hooked = True
            if entry.patch.module in sys.modules:
                entry.installation.notes["order"] = (
                    f"{entry.patch.module} was imported before this patch was hooked: a method that somebody bound "
                    "before stays unpatched; qlora_bf16_patch.guard(model) reaches those of a dispatched model"
                )
            when_imported(entry.patch.module, lambda module: self._arrived(entry, module))
        elif entry.on:
            retry()
            entry.installation.rewrap()
        entry.installation.on = entry.on and entry.installation.known

    def _arrived(self, entry: _Entry, module: ModuleType) -> bool:
        with self._lock:
            if entry.installation.known:
                return True
            if not entry.on:  # switched off while it waited; hooked again if it is ever switched on
                entry.hooked = False
                return True
            entry.problem = _install(entry.patch, entry.installation, module)
            entry.installation.on = entry.on and entry.problem is None
            if entry.problem is None or entry.problem[0] == "skipped":
                return True
            if half_initialised(module):
                return False
            logger.warning("%s could not be installed: %s", entry.patch.name, entry.problem[1])
            return True

    @staticmethod
    def _status(entry: _Entry) -> Status:
        patch = entry.patch
        state, reason = entry.state()
        version = _version(patch.distribution)
        return Status(
            patch.name,
            state,
            reason,
            entry.decided_by,
            version,
            patch.summary,
            tuple(entry.installation.notes.values()),
        )


class _Entry:
    """A patch, its installation, and who decided about it.

    Attributes:
        first: what the environment or the default said, on or off and who.
        layers: the decisions in force, the last one counts: one for calls, and one for each block that is open.
    """

    def __init__(self, patch: Patch, first: Decision, installation: Installation) -> None:
        self.patch = patch
        self.first = first
        self.layers: dict[object, Decision] = {None: first}
        self.installation = installation
        self.hooked = False
        self.problem: tuple[str, str] | None = None  # state, reason

    @property
    def decision(self) -> Decision:
        return next(reversed(self.layers.values()))

    @decision.setter
    def decision(self, decision: Decision) -> None:
        self.layers[next(reversed(self.layers))] = decision

    @property
    def on(self) -> bool:
        return self.decision[0]

    @property
    def decided_by(self) -> str:
        return self.decision[1]

    def state(self) -> tuple[str, str]:
        if not self.on:
            return "off", f"switched off by {self.decided_by}"
        if self.problem:
            return self.problem
        if not self.installation.known:
            return "pending", f"{self.patch.module} is not imported yet"
        shadow = self.installation.shadowed_by()
        if shadow:
            return "shadowed", shadow
        return "active", f"{self.patch.module}:{self.patch.attribute} is patched"


def _install(patch: Patch, installation: Installation, module: ModuleType) -> tuple[str, str] | None:
    """Wrap the patch's target; returns the state and reason where that was not possible.

    It runs inside the user's own import of the library, which an exception would break.
    """
    try:
        version = _version(patch.distribution)
        if patch.requires and version:
            from packaging.specifiers import SpecifierSet  # here, since it takes as long as half of wrapt to import

            if not SpecifierSet(patch.requires).contains(version, prereleases=True):
                return "skipped", f"requires {patch.distribution}{patch.requires}, found {version}"
        path, _, attribute = patch.attribute.rpartition(".")
        owner: Any = module
        for part in filter(None, path.split(".")):
            owner = getattr(owner, part, None)
        if not isinstance(owner, (type, ModuleType)) or not hasattr(owner, attribute):
            return "failed", f"{patch.module} {version or ''} has no {patch.attribute}"
        installation.wrap(owner, attribute, patch.load())
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    logger.debug("%s installed on %s:%s", patch.name, patch.module, patch.attribute)
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: no distribution was named
        return None
