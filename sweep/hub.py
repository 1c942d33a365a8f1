"""Toys in the style of hub code."""

from __future__ import annotations

from . import hub_attention, hub_streams
from .extras import Extra


def toys() -> list[Extra]:
    modules = hub_attention.MODULES + hub_streams.MODULES
    return [Extra(f"hub.{one.__name__}", "hub", lambda one=one: (one, one.example())) for one in modules]  # type: ignore[misc]
