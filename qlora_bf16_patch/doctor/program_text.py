"""What a program's processes left, as plain text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def lines(program: dict[str, Any], versions: Mapping[str, str]) -> list[str]:
    """The program and each of its processes.

    Args:
        program: what came of it.
        versions: of doctor's own libraries, which those of a program's own Python may not be.
    """
    status = program["status"]
    how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return [
        f"{shlex.join(program['command'])}: {how}",
        *(line for one in program["processes"] for line in _told(one, versions)),
    ]


def states(program: dict[str, Any]) -> dict[str, str]:
    """Each patch's states in the processes that came to their end, in words."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in program["processes"]:
        for row in one.get("patches", ()):
            found.setdefault(row["name"], {}).setdefault(state(row), []).append(str(one["pid"]))
    count = _told_by(program)
    return {name: "; ".join(_where(*pair, count) for pair in by_state.items()) for name, by_state in found.items()}


def state(row: dict[str, Any]) -> str:
    """A patch's state with its reason, which mostly says who decided."""
    decided = row["decided_by"]
    return f"{row['state']}: {row['reason']}" + (
        "" if decided == "default" or decided in row["reason"] else f", by {decided}"
    )


def strangers(program: dict[str, Any]) -> list[str]:
    """Who else was seen in which process."""
    found: dict[str, list[str]] = {}
    for one in program["processes"]:
        for sentence in one.get("strangers", ()):
            found.setdefault(sentence, []).append(str(one["pid"]))
    return [_where(*pair, _told_by(program)) for pair in found.items()] or ["none seen"]


def _told_by(program: dict[str, Any]) -> int:
    return sum("patches" in one for one in program["processes"])


def _where(what: str, pids: list[str], count: int) -> str:
    """With the processes that it is true of, where that is not all of them."""
    return what if len(pids) == count else f"{what} (process{'es' * (len(pids) > 1)} {', '.join(pids)})"


def _told(one: dict[str, Any], versions: Mapping[str, str]) -> list[str]:
    head = f"process {one['pid']}: {shlex.join(one['command'])}"
    if "patches" not in one:
        return [head, f"  {one.get('failure') or 'a signal, os._exit or os.exec ended it before it could tell'}"]
    models, cast = one["models"], one["modules_cast"]
    active = sum(row["state"] == "active" for row in one["patches"])
    libraries = {row["name"].partition(".")[0]: row["version"] for row in one["patches"]}
    others = [f"{name} {found}" for name, found in libraries.items() if versions.get(name, found) != found]
    return [
        head,
        *([f"  has other libraries than doctor: {', '.join(others)}"] if others else []),
        f"  {active} patches active; {models or 'no'} k-bit model{'s' * (models > 1)}; casts in {cast} "
        f"module{'s' * (cast != 1)}",
        *([f"  ended by {one['error']}"] if one["error"] else []),
        *(f"  {row['name']}: {note}" for row in one["patches"] for note in row["notes"]),
    ]
