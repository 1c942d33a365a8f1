"""A registered patch: what was decided about it, what came of it, and the state that follows."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from .installation import Installation
from .patch import Patch


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
