"""What people look at: dtypes of a model that ran, and of one that did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .assertions import DtypeAssertionError
from .report import Report
from .trace import Trace

if TYPE_CHECKING:
    from .callback import AssertDtypes

__all__ = ["AssertDtypes", "DtypeAssertionError", "Report", "Trace"]


def __getattr__(name: str) -> type[AssertDtypes]:
    if name != "AssertDtypes":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .callback import AssertDtypes  # it needs transformers, and nothing else here does

    return AssertDtypes
