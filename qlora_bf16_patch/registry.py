"""The engine: patches, their states, and the registry that turns them on and off. It imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import logging
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Callable

import wrapt
from packaging.specifiers import SpecifierSet

from .toggles import Toggles, UnknownPatchError, canonical, nearest

logger = logging.getLogger("qlora_bf16_patch")

Factory = Callable[[Any, "Installation"], Callable[..., Any]]


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
    """The state of one patch: pending, active, off, skipped, failed or shadowed; why; and who decided."""

    name: str
    state: str
    reason: str
    decided_by: str
    version: str | None
    summary: str


class Installation:
    """What one patch has put in place.

    Wrappers read ``on`` at every call: code compiled by torch and methods bound by accelerate keep the wrapper after
    the class attribute is restored, and only a flag reaches them.
    """

    def __init__(self) -> None:
        self.on = False
        self._wrapped: list[
            tuple[type | ModuleType, str, Any, Any]
        ] = []  # owner, attribute, original or MISSING, wrapper

    def wrap(self, owner: type | ModuleType, attribute: str, factory: Factory) -> None:
        """Put a plain function over ``owner.attribute``; once per owner and attribute.

        A ``wrapt.FunctionWrapper`` would be bypassed by ``torch.compile`` in a nested module (measured on torch 2.13),
        hence ``wrap_object`` with a factory that returns a plain function.
        """
        if any(o is owner and a == attribute and vars(o).get(a) is w for o, a, _, w in self._wrapped):
            return
        before = vars(owner).get(attribute, _MISSING)
        wrapt.wrap_object(owner, attribute, factory, (self,))  # type: ignore[arg-type]  # typed for proxies alone
        self._wrapped.append((owner, attribute, before, vars(owner)[attribute]))

    @property
    def empty(self) -> bool:
        return not self._wrapped

    def shadowed_by(self) -> str | None:
        """The function that another party put over ours, or None."""
        for owner, attribute, _, wrapper in self._wrapped:
            current = vars(owner).get(attribute)
            if current is not wrapper:
                return f"{owner.__name__}.{attribute} is {getattr(current, '__module__', '?')}'s {current!r}"
        return None

    def restore(self) -> None:
        """Flag first, then the very objects that stood there before; another party's wrapper is left alone."""
        self.on = False
        kept = []
        for owner, attribute, before, wrapper in reversed(self._wrapped):
            if vars(owner).get(attribute) is not wrapper:
                kept.append((owner, attribute, before, wrapper))
            elif before is _MISSING:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, before)
        self._wrapped = kept[::-1]


_MISSING = object()


class _Entry:
    def __init__(self, patch: Patch, on: bool, decided_by: str) -> None:
        self.patch = patch
        self.on = on
        self.decided_by = decided_by
        self.installation = Installation()
        self.problem: tuple[str, str] | None = None  # state, reason


class Registry:
    """All known patches. Thread-safe; every call is idempotent."""

    def __init__(self, toggles: Toggles) -> None:
        self._toggles = toggles
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.RLock()

    def register(self, patch: Patch) -> None:
        """Add a patch. It is installed when its library arrives, or at once if that is imported already.

        Raises:
            ValueError: another patch has this name.
        """
        with self._lock:
            if patch.name in self._entries:
                raise ValueError(f"a patch named {patch.name!r} is registered already")
            on, decided_by = self._toggles.decide(patch.name, patch.default)
            self._entries[patch.name] = _Entry(patch, on, decided_by)
        if not self._toggles.killed:
            wrapt.register_post_import_hook(lambda module: self._arrived(patch.name, module), patch.module)

    def enable(self, *names: str, force: bool = False) -> None:
        """Turn patches on, by name or glob. What the environment decided stays, unless ``force``."""
        self._switch(names, True, force)

    def disable(self, *names: str, force: bool = False) -> None:
        """Turn patches off, by name or glob. What the environment decided stays, unless ``force``."""
        self._switch(names, False, force)

    @contextlib.contextmanager
    def enabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches on inside the block, as before after it."""
        with self._restored():
            self.enable(*names, force=force)
            yield

    @contextlib.contextmanager
    def disabled(self, *names: str, force: bool = False) -> Iterator[None]:
        """Patches off inside the block, as before after it."""
        with self._restored():
            self.disable(*names, force=force)
            yield

    def uninstall(self) -> None:
        """Turn everything off and put back the very objects that were there before."""
        with self._lock:
            for entry in reversed(list(self._entries.values())):
                entry.on, entry.decided_by = False, "call (uninstall)"
                entry.installation.restore()

    def status(self) -> list[Status]:
        """Every patch with its state, reason and who decided."""
        with self._lock:
            return [self._status(entry) for entry in self._entries.values()]

    def installation(self, name: str) -> Installation:
        """The installation of the patch ``name``."""
        return self._entries[name].installation

    def _switch(self, patterns: tuple[str, ...], on: bool, force: bool) -> None:
        with self._lock:
            for name in self._matching(patterns):
                entry = self._entries[name]
                if entry.decided_by.startswith("environment") and not force:
                    continue
                entry.on, entry.decided_by = on, "call (forced)" if force else "call"
                self._apply(entry)

    def _matching(self, patterns: tuple[str, ...]) -> list[str]:
        names = list(self._entries)
        if not patterns:
            return names
        found: list[str] = []
        for pattern in patterns:
            matches = fnmatch.filter(names, canonical(pattern))
            if not matches:
                raise UnknownPatchError(f"unknown patch {pattern!r}.{nearest(pattern, names)}")
            found += matches
        return found

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        with self._lock:
            before = {name: (entry.on, entry.decided_by) for name, entry in self._entries.items()}
        try:
            yield
        finally:
            with self._lock:
                for name, (on, decided_by) in before.items():
                    entry = self._entries[name]
                    entry.on, entry.decided_by = on, decided_by
                    self._apply(entry)

    def _arrived(self, name: str, module: ModuleType) -> None:
        with self._lock:
            self._apply(self._entries[name], module)

    def _apply(self, entry: _Entry, module: ModuleType | None = None) -> None:
        if not entry.on:
            entry.installation.on = False
            return
        if entry.installation.empty and not self._toggles.killed:
            module = module or sys.modules.get(entry.patch.module)
            if module is None:
                return
            # An exception here would break the user's own `import peft`; it is told in the status instead.
            try:
                entry.problem = self._install(entry, module)
            except Exception as error:
                entry.problem = ("failed", f"{type(error).__name__}: {error}")
                logger.warning("%s could not be installed: %s", entry.patch.name, error)
        entry.installation.on = not entry.installation.empty

    @staticmethod
    def _install(entry: _Entry, module: ModuleType) -> tuple[str, str] | None:
        patch = entry.patch
        version = _version(patch.distribution)
        if patch.requires and version and not SpecifierSet(patch.requires).contains(version, prereleases=True):
            return "skipped", f"requires {patch.distribution}{patch.requires}, found {version}"
        path, _, attribute = patch.attribute.rpartition(".")
        owner: Any = module
        for part in filter(None, path.split(".")):
            owner = getattr(owner, part, None)
        if not isinstance(owner, (type, ModuleType)) or not hasattr(owner, attribute):
            return "failed", f"{patch.module} has no {patch.attribute}"
        entry.installation.wrap(owner, attribute, patch.load())
        logger.debug("%s installed on %s:%s", patch.name, patch.module, patch.attribute)
        return None

    def _status(self, entry: _Entry) -> Status:
        state, reason = self._state(entry)
        patch = entry.patch
        return Status(patch.name, state, reason, entry.decided_by, _version(patch.distribution), patch.summary)

    def _state(self, entry: _Entry) -> tuple[str, str]:
        if not entry.on:
            return "off", f"switched off by {entry.decided_by}"
        if entry.problem:
            return entry.problem
        if entry.installation.empty:
            return "pending", f"{entry.patch.module} is not imported yet"
        shadow = entry.installation.shadowed_by()
        if shadow:
            return "shadowed", shadow
        return "active", f"{entry.patch.module}:{entry.patch.attribute} is patched"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
