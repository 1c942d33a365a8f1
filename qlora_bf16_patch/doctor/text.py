"""The report as plain text, to be pasted into an issue."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from . import program_text
from .verdict import Report


def text(report: Report) -> str:
    """The whole report, sections apart."""
    sections = [
        ("", _verdict(report)),
        ("machine", _machine(report)),
        ("installed", _packages(report)),
        ("patches", _patches(report)),
        ("others' patches", _strangers(report)),
        ("known clashes of these releases", _clashes(report)),
        ("the reported failure (huggingface/peft#1515), on a tiny 4-bit Llama", _selftest(report)),
        ("the program", _program(report)),
    ]
    return "\n\n".join("\n".join(_section(title, lines)) for title, lines in sections if lines)


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    if title:
        yield title
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    for line in lines:
        indent = "  " if title else ""
        deeper = len(line) - len(line.lstrip())
        yield textwrap.fill(
            line,
            width,
            initial_indent=indent,
            subsequent_indent=f"{indent}{' ' * deeper}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _verdict(report: Report) -> list[str]:
    where = "in this program" if "program" in report else "here"
    if report["works"]:
        return [f"qlora-bf16-patch {report['version']} works {where}."]
    return [f"qlora-bf16-patch {report['version']} does not work {where}:", *(f"- {one}" for one in report["problems"])]


def _machine(report: Report) -> list[str]:
    found = report.get("machine")
    if not found:
        return []
    torch, cpu = found["torch"], found["processor"]
    bfloat16 = f"bfloat16 by {', '.join(cpu['bfloat16'])}" if cpu["bfloat16"] else "no bfloat16 instructions"
    gpus = [
        f"GPU: {gpu['name']}, {gpu['capability']}, {gpu['memory'] >> 30} GiB"
        + ("" if gpu["bfloat16"] else ", without bfloat16 of its own")
        for gpu in found["gpus"]
    ]
    if isinstance(torch, str):
        build = f"torch cannot be imported: {torch}"
    else:
        device = f"CUDA {torch['cuda']}" if torch["cuda"] else f"HIP {torch['hip']}" if torch["hip"] else "no CUDA"
        build = f"torch {torch['version']}: {device}, kernels for {torch['cpu']}"
    variables = [f"{name}={value!r}" for name, value in found["environment"].items()]
    return [
        f"Python {found['python']}, {found['executable']}",
        f"{found['system']}; {cpu['name']}, {found['cores']} cores, {bfloat16}",
        *(gpus or ["no GPU"]),
        build,
        f"environment: {', '.join(variables) or 'no QLORA_BF16_PATCH variable'}",
    ]


def _packages(report: Report) -> list[str]:
    found = report.get("packages", ())
    unmet = [f"{one['name']} {one['version']} {ask}" for one in found for ask in one["unmet"]]
    return [", ".join(f"{one['name']} {one['version']}" for one in found), *unmet] if found else []


def _patches(report: Report) -> list[str]:
    """Of the program's processes where there is a program, else of a fresh one."""
    needed: dict[str, Any] = report.get("needed", {})
    rows = program_text.states(report["program"]) if "program" in report else _states(report.get("patches", ()))
    lines = []
    for name, state in rows.items():
        lines.append(f"{name}: {state}")
        asked = needed.get(name, {})
        lines += [f"  {asked[key]}" for key in ("sentence", "can_go") if asked.get(key)]
    return lines


def _program(report: Report) -> list[str]:
    versions = {one["name"]: one["version"] for one in report.get("packages", ())}
    return program_text.lines(report["program"], versions) if "program" in report else []


def _states(rows: Iterable[Any]) -> dict[str, str]:
    return {row["name"]: "; ".join([program_text.state(row), *row["notes"]]) for row in rows}


def _strangers(report: Report) -> list[str]:
    if "program" in report:
        return program_text.strangers(report["program"])
    return report.get("strangers", []) or ["none seen"]


def _clashes(report: Report) -> list[str]:
    if "packages" not in report:
        return []
    return [f"{' with '.join(one['releases'])}: {one['text']} ({one['source']})" for one in report["clashes"]] or [
        "none"
    ]


def _selftest(report: Report) -> list[str]:
    found = report.get("selftest")
    if not found:
        return []
    return [f"without the shim: {_tried(found['off'])}", f"with it, as it is switched here: {_tried(found['on'])}"]


def _tried(one: Any) -> str:
    return f"{one['error']}" if "error" in one else f"generated the tokens {' '.join(map(str, one['tokens']))}"
