"""A promise of a patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Promise:
    """One thing that a patch makes true.

    Attributes:
        text: what holds with the patch, in the third person: "leaves the bias as it is".
        holds: runs it on a toy, with whatever is patched at the moment, and says whether it holds. Where torch refuses
            dtypes, it raises that error; what else it raises means that it could not be asked.
    """

    text: str
    holds: Callable[[], bool]
