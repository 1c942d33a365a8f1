"""``docs/versions.md``, made from the records and from the floors of the package."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib
from packaging.version import Version

from qlora_bf16_patch.patches.versions import FLOORS

from .. import pages
from .expected import why, why_run
from .processes import RECORDS, ROOT

LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate", "torch")
PARTS = ("status", "failure", "contracts", "toggles", "compiled", "sweep")
TESTS = ("contracts", "toggles", "compiled")
ENGINE = RECORDS / "engine.json"
PAGE = ROOT / "docs" / "versions.md"
STACKS = tomllib.loads(Path(__file__).with_name("stacks.toml").read_text())
del STACKS["defaults"], STACKS["engine"]
ASKED_FOR = (
    "Python {python} or newer; wrapt {wrapt} to 2.x, torch {torch}, PEFT {peft} and bitsandbytes {bitsandbytes} or "
    "newer are asked for."
).format(**FLOORS)


def run_with() -> str:
    """The oldest and the newest release of each library that was recorded, in words."""
    words = []
    for name in LIBRARIES:
        found = {
            Version(record["versions"][name]).public for record in records().values() if name in record["versions"]
        }
        oldest, *_, newest = sorted(found, key=Version)
        words.append(f"{name} {oldest} to {newest}")
    return ", ".join(words)


INTRODUCTION = f"""\
# Versions

<!-- Written by `python -m tests.versions --write` from docs/versions/*.json. -->

{ASKED_FOR} A release that is newer than the newest one here is patched as well, and
`qlora_bf16_patch.status()` says that it was not tested.

`make matrix` installs each of these stacks in an environment of its own (`make matrix STACK=pinned` one of them), and
writes what it finds to `docs/versions/`. The report is huggingface/peft#1515: a QLoRA model in bf16, trained by
`Trainer`, whose callback generates after each of three steps. The contracts are the tests of the patches and of
training's parity, the sweep is a selection of `make sweep`: model classes in the ways in which users prepare them, in
training and generation, in and out of autocast, each without and with the shim.
"""

TORCH = """\
## torch

`make torch` does the same with other releases of torch, each with the newest companions that run with it. Here the
tests of switching on and off and of compiled code are run instead of the sweep. Before torch 2.8 Dynamo cannot trace a
4-bit layer of bitsandbytes in one graph, with the shim as without, and before 2.7 not PEFT's own `forward` either.
"""
ENGINES = """\
## Python and wrapt

`make engine` runs the tests of the engine, which needs no torch, with wrapt's extension in C and without it
(`WRAPT_DISABLE_EXTENSIONS`). Where only one is told, pip finds that wrapt without its extension for that Python.
"""


def parts_of(stack: str) -> tuple[str, ...]:
    """What is recorded of a stack: where torch is another one, toggles and compiled code instead of the sweep."""
    left_out = ("sweep",) if stack.startswith("torch-") else ("toggles", "compiled")
    return tuple(part for part in PARTS if part not in left_out)


def records() -> dict[str, dict[str, Any]]:
    """What was recorded, by stack, in the order of ``stacks.toml``."""
    files = {name: RECORDS / f"{name}.json" for name in STACKS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    of_torch = {"status", "failure"}  # the tests as far as they were run
    needed = {name: of_torch if name.startswith("torch-") else {*parts_of(name)} for name in found}
    return {name: record for name, record in found.items() if record.keys() >= needed[name]}


def page() -> str:
    found = records()
    torchs = {name: record for name, record in found.items() if name.startswith("torch-")}
    libraries = {name: record for name, record in found.items() if name not in torchs}
    tables = [*table(libraries, "contracts", "sweep"), "", TORCH, *table(torchs, *TESTS), "", *engine()]
    return "\n".join([INTRODUCTION, *tables, "", *autocast(libraries), *notes(found)])


def table(found: dict[str, dict[str, Any]], *parts: str) -> Iterator[str]:
    columns = ("stack", *LIBRARIES, "Python", "the report", *parts)
    yield from pages.table(columns, (cells(name, record, parts) for name, record in found.items()))


def cells(name: str, record: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    versions = (record["versions"].get(one, "") for one in LIBRARIES)
    results = (sweep(record) if part == "sweep" else tests(record, part) for part in parts)
    return [name, *versions, record["python"], report(record), *results]


def report(record: dict[str, Any]) -> str:
    """How many of three steps generated."""
    runs = record["failure"]
    if any(run["steps"] != 3 for run in runs.values()):
        return "does not run"
    off, on, fp16 = (runs[name]["generated"] for name in ("bf16 off", "bf16 on", "fp16 on"))
    return f"off: {off} of 3 generate; on: {on}, in fp16 {fp16}"


def tests(record: dict[str, Any], part: str) -> str:
    if part not in record:
        return "not run"
    counts = {kind: sum(one.get(kind, 0) for one in record[part].values()) for kind in ("passed", "skipped")}
    explained, unexplained = failures(record, True, part), failures(record, False, part)
    words = [f"{counts['passed']} passed"]
    for count, what in (
        (sum(one["cases"] for one in explained), "fail for a known reason"),
        (sum(one["cases"] for one in unexplained), "fail"),
        (counts["skipped"], "skipped"),
        (sum("error" in one for one in record[part].values()), "files not run"),
    ):
        words += [f"{count} {what}"] if count else []
    return ", ".join(words)


def tested(record: dict[str, Any], *parts: str) -> dict[str, dict[str, Any]]:
    """What became of the tests, by file."""
    return {file: counted for part in parts or TESTS for file, counted in record.get(part, {}).items()}


def failures(record: dict[str, Any], expected: bool, *parts: str) -> list[dict[str, Any]]:
    """The tests that failed, those with a known reason or the others."""
    failed = [one for counted in tested(record, *parts).values() for one in counted.get("what failed", ())]
    told = [one | {"expected": why(one["test"], one["reason"], record["versions"])} for one in failed]
    return [one for one in told if bool(one["expected"]) == expected]


def sides(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The outcomes of a sweep's runs off and on, by class and recipe."""
    return [sides for recipes in record["sweep"]["classes"].values() for sides in recipes.values()]


def mismatches(record: dict[str, Any]) -> list[int]:
    """How many of them are mismatches, off and on."""
    return [sum(side[name].get("mismatch", 0) for side in sides(record)) for name in ("off", "on")]


def sweep(record: dict[str, Any]) -> str:
    swept = record["sweep"]
    if "error" in swept:
        return "does not run"
    runs = sum(sum(side["off"].values()) for side in sides(record))
    off, on = mismatches(record)
    errors = len(swept["errors"])
    others = f", {errors} fail for other reasons" if errors else ""
    return f"{len(swept['classes'])} classes, {runs} runs: off {off} mismatches, on {on}{others}"


def engine() -> Iterator[str]:
    rows = json.loads(ENGINE.read_text())
    pythons = list(dict.fromkeys(one["python"] for one in rows))
    yield ENGINES
    cells = defaultdict(lambda: defaultdict(list))  # of a release, by Python
    for one in rows:
        cells[one["wrapt"]][one["python"]].append(ran(one))
    found = ([release, *("; ".join(by[python]) for python in pythons)] for release, by in cells.items())
    yield from pages.table(["wrapt", *(f"Python {python}" for python in pythons)], found)
    yield ""
    failed = {(one["wrapt"], test["test"]) for one in rows for test in one.get("what failed", ())}
    for release, test in sorted(failed):
        yield f"- wrapt {release}: `{test}`: {why(test, '', {'wrapt': release}) or 'not explained'}."


def ran(one: dict[str, Any]) -> str:
    failed = f", {one['failed']} failed" if one.get("failed") else ""
    return f"{'in C' if one['extension'] else 'in Python'} {one.get('passed', 'none')} passed{failed}"


def autocast(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What fails in a training step as `Trainer` runs it."""
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, record in found.items():
        for run, message in record["sweep"].get("mismatches", {}).items():
            if run.endswith("train under autocast") and name not in where[run.split()[0], message]:
                where[run.split()[0], message].append(name)
    yield "## What fails under autocast"
    yield ""
    yield "Training under autocast that the sweep saw fail without the shim, and run with it:"
    yield ""
    yield from (f"- {model}: `{message}` ({', '.join(stacks)})" for (model, message), stacks in sorted(where.items()))
    yield ""


def notes(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "## Stack by stack"
    for name, record in found.items():
        yield ""
        yield f"### {name}"
        yield ""
        yield from (f"- {line}" for line in noted(record))


def noted(record: dict[str, Any]) -> Iterator[str]:
    yield f"Recorded on {record['date']} on {record['machine']}."
    if record.get("operators"):
        yield record["operators"]
    for row in record["status"]:
        if row["state"] not in ("active", "off"):
            yield f"`{row['name']}` is {row['state']}: {row['reason']}."
    for run, outcome in record["failure"].items():
        if outcome.get("error") and run != "bf16 off":
            yield f"The report in {run}: `{outcome['error']}`"
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in failures(record, True):
        reasons[one["expected"]] += [f"`{one['test']}`"] * (f"`{one['test']}`" not in reasons[one["expected"]])
    yield from (f"Fails for a known reason: {', '.join(tests)}: {reason}." for reason, tests in reasons.items())
    for one in failures(record, False):
        yield f"Fails: `{one['test']}` ({one['cases']}): {one['reason']}"
    for file, counted in tested(record).items():
        if "error" in counted:
            yield f"The tests of {file} did not run: {counted['error']}"
        for one in counted.get("what was skipped", ()):
            yield f"Skipped: `{one['test']}` ({one['cases']}): {one['reason']}"
    if "sweep" in record:
        yield from _swept(record["sweep"], record["versions"])


def _swept(swept: dict[str, Any], versions: dict[str, str]) -> Iterator[str]:
    if "error" in swept:
        yield f"The sweep did not run: {swept['error']}"
        return
    if swept["absent"]:
        yield f"Not in this release: {', '.join(swept['absent'])}."
    causes: dict[str, list[str]] = defaultdict(list)
    for run, message in swept["wrong"].items():
        causes[f"{message} ({why_run(run, message, versions) or 'not explained'})"].append(run)
    yield from (f"Other than without the shim: {'; '.join(runs)}: {cause}" for cause, runs in causes.items())
    errors: dict[str, list[str]] = defaultdict(list)
    for run, message in swept["errors"].items():
        explained = why_run(run, message, versions)
        errors[f"`{message}`{f' ({explained})' if explained else ''}"].append(run)
    yield from (
        f"Out of reach, for another reason than dtypes: {'; '.join(runs)}: {cause}" for cause, runs in errors.items()
    )
