"""A promise of a patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

ALWAYS = "0"  # a release that every other one reaches


@dataclasses.dataclass(frozen=True)
class Promise:
    """One thing that a patch makes true.

    Attributes:
        text: what holds with the patch, in the third person: "leaves the bias as it is".
        holds: runs it on a toy, with whatever is patched at the moment, and says whether it holds. Where torch refuses
            dtypes, it raises that error; what else it raises means that it could not be asked.
        kept_from: the first release of the patch's distribution that keeps it by itself; :data:`ALWAYS` where every one
            does. Empty where none does yet.
        broken_on: the machines on which releases break it, where not on all: "not on ..." is said of it.
    """

    text: str
    holds: Callable[[], bool]
    kept_from: str = ""
    broken_on: str = ""
