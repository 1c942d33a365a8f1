"""Whether the shim works here, and if not, why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .rows import problems as of_rows

Report = dict[str, Any]
"""What ``doctor --json`` prints: see :func:`problems` for what is read of it."""

# In a process of a program a library may never be imported.
_IN_A_PROGRAM = ("active", "off", "pending")


def problems(report: Report) -> list[str]:
    """A sentence for each reason why the shim does not work, with what to do. None means that it does."""
    told = list(report["failures"])
    if "program" in report:
        told += _of_program(report["program"])
    else:
        told += of_rows(report.get("patches", ()))
    return [*dict.fromkeys([*told, *_of_promises(report), *_of_selftest(report)])]


def _of_selftest(report: Report) -> Iterator[str]:
    on = report.get("selftest", {}).get("on", {})
    if on.get("of_dtypes"):
        yield (
            f"the reported failure is not mended with the shim as it is switched here: {on['error']}; switch "
            "peft.boundary on, or report it where it is"
        )
    elif "error" in on:
        yield f"a 4-bit Llama does not generate here, for another reason than dtypes: {on['error']}"


def _of_promises(report: Report) -> Iterator[str]:
    active = {row["name"] for row in report.get("patches", ()) if row["state"] == "active"}
    for name, found in report.get("needed", {}).items():
        for answer in found["answers"]:
            if name in active and answer["patched"] is False:
                yield f"{name} is active, and yet it does not hold here that it {answer['promise']}: report it"


def _of_program(program: Report) -> Iterator[str]:
    if program["isolated"]:
        yield program["isolated"]
    if not program["processes"]:
        if program["isolated"]:
            return
        yield (
            "no process of the program told that it imported torch, bitsandbytes, peft or transformers with this "
            "release of the shim on: is it the program that trains?"
        )
        return
    ended = [one for one in program["processes"] if "patches" in one]
    for one in program["processes"]:
        where = f"process {one['pid']}"
        if "failure" in one:
            yield f"{where} could not tell what was done: {one['failure']}"
        for sentence in of_rows(one.get("patches", ()), _IN_A_PROGRAM) if "patches" in one else ():
            yield f"{where}: {sentence}"
        if one.get("of_dtypes"):
            yield (
                f"{where} ended by {one['error']}: a note in the traceback says where; without one the module is none "
                "that the shim has taken in, and qlora_bf16_patch.guard(module) may be what it wants"
            )
    if not any(one["models"] for one in ended):
        yield (
            f"no k-bit model was seen in {_spoken(len(program['processes']), 'process', 'processes')} of the program: "
            "one without adapters, or that a pickle brought, is taken in by qlora_bf16_patch.guard(model)"
        )


def _spoken(count: int, one: str, many: str) -> str:
    return f"the one {one}" if count == 1 else f"the {count} {many}"
