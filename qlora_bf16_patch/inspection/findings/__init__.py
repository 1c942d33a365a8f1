"""What a report looks for. A new kind of finding is one file in this folder and one entry here."""

from __future__ import annotations

from collections.abc import Iterator

from . import bypassed, compute, flattening, mismatches, scaling, unguarded
from .finding import Finding, Looked

# In the order in which they are told: first what ends a run, then what matters to one engine.
FINDERS = (
    mismatches.find,
    bypassed.find,
    unguarded.find,
    compute.find,
    scaling.find,
    flattening.find,
)


def find(looked: Looked) -> Iterator[Finding]:
    """All that is found."""
    for finder in FINDERS:
        yield from finder(looked)
