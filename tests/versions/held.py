"""What a record is held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .expected import why_run
from .page import failures, tested


def complaints(record: dict[str, Any]) -> Iterator[str]:
    """What the shim does wrong on a stack, and what nobody has explained; of the parts that were recorded."""
    for row in record.get("status", ()):
        if row["state"] == "failed":
            yield f"{row['name']} is failed: {row['reason']}"
    on = record.get("failure", {}).get("bf16 on")
    if on not in (None, {"steps": 3, "generated": 3}):
        yield f"the report with the shim: {on}"
    if record.get("failure", {}).get("bf16 off", {}).get("generated"):
        yield "the report is none without the shim"
    yield from (f"{file}: {counted['error']}" for file, counted in tested(record).items() if "error" in counted)
    yield from (f"{one['test']}: {one['reason']}" for one in failures(record, expected=False))
    if sweep := record.get("sweep"):
        if "error" in sweep:
            yield f"the sweep: {sweep['error']}"
            return
        for name, recipes in sweep["classes"].items():
            for recipe, sides in recipes.items():
                if mismatches := sides["on"].get("mismatch"):
                    yield f"{name} {recipe}: {mismatches} mismatches with the shim"
        for run, reason in sweep["wrong"].items():
            if not why_run(run, reason, record["versions"]):
                yield f"{run}: {reason}"
