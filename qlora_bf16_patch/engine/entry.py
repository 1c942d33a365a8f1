"""A registered patch: what was decided about it, how it gets in place once its library is there, and its state.

No lock is held while code of others runs.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from types import ModuleType
from typing import Any, NamedTuple

from . import versions
from .imports import retry, when_imported
from .installation import Installation, Target
from .patch import Patch, Unsupported
from .wrapping import LOCK

logger = logging.getLogger("qlora_bf16_patch")


class Decision(NamedTuple):
    """Who turned a patch on or off.

    Attributes:
        on: whether it is on.
        by: default, environment (with the variable) or call.
        taken_out: off, and nothing of it is to stand in place.
    """

    on: bool
    by: str
    taken_out: bool = False


class Problem(NamedTuple):
    """Why a patch is not in place: its state, failed or skipped, and the reason."""

    state: str
    reason: str


class Entry:
    """A patch in the registry. Its fields are read and written under the lock.

    Attributes:
        patch: as registered.
        first: what the environment or the default said.
        layers: the decisions in force, the last one counts: one for calls, and one for each block that is open.
        installation: what is in place.
        hooked: whether the module's import will be told, or was.
        arrived: whether the module was there once, complete.
        problem: what hindered the last attempt, if anything.
        warned: whether the user was warned of a failure.
    """

    def __init__(
        self, patch: Patch, first: Decision, installation: Installation, problem: Problem | None = None
    ) -> None:
        self.patch = patch
        self.first = first
        self.layers: dict[object, Decision] = {None: first}
        self.installation = installation
        self.hooked = False
        self.arrived = problem is not None
        self.problem = problem
        self.warned = False

    @property
    def decision(self) -> Decision:
        return next(reversed(self.layers.values()))

    @decision.setter
    def decision(self, decision: Decision) -> None:
        self.layers[next(reversed(self.layers))] = decision

    @property
    def on(self) -> bool:
        return self.decision.on

    @property
    def in_place(self) -> bool:
        """Whether nothing is left to be done for a patch that is on."""
        installation = self.installation
        return installation.placed and not (self.problem or self._loaded_again() or installation.shadowed_by())

    def settle(self) -> None:
        """Make the flag what the decision says."""
        self.installation.on = self.on and self.installation.placed and self.problem is None

    def state(self) -> tuple[str, str]:
        """State and reason."""
        patch = self.patch
        if not self.on:
            return "off", f"switched off by {self.decision.by}"
        if self.problem:
            return self.problem
        if not self.installation.known:
            return "pending", f"{patch.module} is not imported yet" if patch.module else "it names no module"
        if not self.installation.on:
            return "pending", "another thread is putting it in place"
        shadow = self._loaded_again() or self.installation.shadowed_by()
        if shadow:
            return "shadowed", f"{shadow}; enable({patch.name!r}) patches what is there now"
        return "active", f"{patch.spoken_targets()} is patched"

    def _loaded_again(self) -> str:
        """Whether a module has another class now than the one that was patched, as after ``importlib.reload``."""
        patched = [target[:2] for target in self.installation.targets]
        for name, path in self.patch.targets:
            *parts, attribute = path.split(".")
            owner: Any = sys.modules.get(name)
            for part in parts:  # not getattr, which makes a lazy module import
                owner = getattr(owner, "__dict__", {}).get(part)
            if owner is not None and (owner, attribute) not in patched:
                return f"{name} was loaded again, and its {path} is not the one that was patched"
        return ""


def bring(entries: list[Entry]) -> None:
    """Set flags, take wrappers out, put wrappers in place, as decided. A patch that was never on hooks nothing."""
    with LOCK:
        for entry in entries:
            entry.settle()
        out = [entry.installation for entry in entries[::-1] if entry.decision.taken_out]
        while any([installation.restore() for installation in out]):
            pass  # a wrapper of ours that was beneath another one of ours is on top now
        hook = [entry for entry in entries if entry.on and not entry.hooked and entry.patch.module]
        there = [entry for entry in entries if entry.on and entry.arrived and not entry.in_place]
        for entry in hook:
            entry.hooked = True
    for entry in hook:
        if entry.patch.module in sys.modules:
            entry.installation.notes["order"] = _late(entry.patch)
        when_imported(entry.patch.module, functools.partial(_arrived, entry))
    for entry in there:
        module = sys.modules.get(entry.patch.module)
        if module is not None:
            _install(entry, module)
        _warn(entry)
    retry()


def _arrived(entry: Entry, module: ModuleType, complete: bool) -> bool:
    """The patch's library is there. It runs inside the user's own import, which an exception would break."""
    with LOCK:
        entry.hooked = entry.on  # switched off while it waited: hooked again if it is ever switched on
        if not entry.on or entry.installation.known:
            return True
    _install(entry, module)
    with LOCK:
        if entry.problem is not None and entry.problem.state == "failed" and not complete:
            return False
        entry.arrived = True
    _warn(entry)
    return True


def _install(entry: Entry, module: ModuleType) -> None:
    patch, problem = entry.patch, None
    try:
        version = versions.installed(patch.distribution)
        refusal = versions.refusal(patch, version)
        if refusal:
            problem = Problem("skipped", refusal)
        elif entry.installation.install(targets(patch, module), wanted=lambda: entry.on):
            note = versions.newer_than_tested(patch, version)
            if note:
                entry.installation.note("tested", note, logging.INFO)
            logger.debug("%s installed on %s", patch.name, patch.spoken_targets())
    except Exception as error:
        problem = Problem("failed", ("" if type(error) is Unsupported else f"{type(error).__name__}: ") + str(error))
    with LOCK:
        if problem is None or not entry.installation.known:  # else what is in place stays, and may be shadowed
            entry.problem = problem
        entry.settle()


def _warn(entry: Entry) -> None:
    """Warn once of a patch that is on and failed: a user who relies on it must hear of it."""
    with LOCK:
        failed = entry.on and entry.problem is not None and entry.problem.state == "failed"
        if not failed or entry.warned:
            return
        entry.warned = True
    text = _failure(entry)
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    except Exception:  # warnings are errors here, but this may be the user's own import of the library
        logger.warning("%s", text)


def targets(patch: Patch, module: ModuleType) -> list[Target]:
    """The patch's targets in its module, with the factory for each.

    Raises:
        Unsupported: one of them is not there. Loading the factory may raise anything.
    """
    places = []
    for name, path in patch.targets:
        owner, attribute = _find(module if name == patch.module else sys.modules.get(name), path)
        if not isinstance(owner, (type, ModuleType)) or not hasattr(owner, attribute):
            version = versions.installed(patch.distribution)
            raise Unsupported(f"{name}{f' {version}' if version else ''} has no {path}")
        places.append((owner, attribute))
    factory = patch.factory()
    return [Target(owner, attribute, factory) for owner, attribute in places]


def _find(module: Any, path: str) -> tuple[Any, str]:
    """The object that holds a target, and the target's name in it."""
    *parts, attribute = path.split(".")
    return functools.reduce(lambda owner, part: getattr(owner, part, None), parts, module), attribute


def _late(patch: Patch) -> str:
    text = f"{patch.module} was imported before this patch was hooked: "
    if any("." in path for _, path in patch.targets):
        return text + (
            "a method that somebody bound before stays unpatched; qlora_bf16_patch.guard(model) reaches those of a "
            "dispatched model"
        )
    return text + "who imported the function by name before keeps the unpatched one"


def _failure(entry: Entry) -> str:
    patch, reason = entry.patch, entry.problem.reason if entry.problem else ""
    version = versions.installed(patch.distribution)
    found = f" on {patch.distribution} {version}" if version else f" on {patch.module}" if patch.module else ""
    return (
        f"the patch {patch.name} could not be installed{found}: {reason}. What it mends is not mended. Switch it off "
        f"with QLORA_BF16_PATCH_DISABLE={patch.name} to silence this, or report it."
    )
