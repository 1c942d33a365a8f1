"""Where two phases of a model, or two runs of it, differ in precision."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from .observed import Ran


@dataclasses.dataclass(frozen=True)
class Difference:
    """One column of one module that is not the same in two phases.

    Attributes:
        path: the module's.
        module: its class.
        column: ``inputs``, ``weight``, ``compute``, ``autocast`` or ``outputs``; ``casts`` where one side alone casts.
        left: what it is in the first phase, in words.
        right: what it is in the second one.

    Examples:
        >>> trace.compare("training", "generation")[-1]
        Difference(path='base_model.model.lm_head', module='Linear', column='casts', left='none',
        right='linear input float32 to bfloat16')
    """

    path: str
    module: str
    column: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.path} ({self.module}): {self.column}: {self.left} | {self.right}"


def differences(left: Any, left_phase: str, right: Any, right_phase: str) -> list[Difference]:
    """The differences of the modules that ran in both, in the order of the first one."""
    sides = [_by_path(left, left_phase), _by_path(right, right_phase)]
    casts = [_casts(left, left_phase), _casts(right, right_phase)]
    found = []
    for path, seen in sides[0].items():
        others = sides[1].get(path)
        if others is None:
            continue
        for column in ("inputs", "weight", "compute", "autocast", "outputs"):
            mine, theirs = _words(seen, column), _words(others, column)
            if mine != theirs:
                found.append(Difference(path, seen[0].module, column, mine, theirs))
        if casts[0].get(path) != casts[1].get(path):
            found.append(Difference(path, seen[0].module, "casts", *(side.get(path, "none") for side in casts)))
    return found


def known_phase(trace: Any, phase: str | None, position: int) -> str:
    """A phase of a trace: the one that is named, else the one at a position.

    Raises:
        ValueError: there is no such phase.
    """
    phases: tuple[str, ...] = trace.phases
    if phase is None and position < len(phases):
        return phases[position]
    if phase is None or phase not in phases:
        seen = ", ".join(phases) or "none: nothing ran"
        raise ValueError(f"there is no {f'phase {phase!r}' if phase else 'second phase'} to compare; seen: {seen}.")
    return phase


def _by_path(trace: Any, phase: str) -> dict[str, list[Ran]]:
    found = defaultdict(list)
    for seen in trace.ran:
        if seen.phase == phase:
            found[seen.path].append(seen)
    return found


def _casts(trace: Any, phase: str) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for seen in trace.casts:
        if seen.phase == phase and seen.needed:  # the others compute as the other phase does
            found[seen.path].append(f"{seen.operation} {seen.operand} {seen.given} to {seen.to}")
    return {path: "; ".join(sorted(words)) for path, words in found.items()}


def _words(seen: list[Ran], column: str) -> str:
    """All values of a column, in words."""
    values = [value if isinstance(value, tuple) else (value,) for value in (getattr(one, column) for one in seen)]
    return ", ".join(sorted({str(word) for value in values for word in value if word is not None})) or "none"
