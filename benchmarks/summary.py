"""``python -m benchmarks.summary FILE.json ...``: what was measured, as pages that a person can read, beside the files.

The files themselves are not kept in git.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toys.conditions import CONDITIONS

from .measure import Measured
from .rows import generated

COLUMNS = (*CONDITIONS, "floor")
ABOUT = (
    "Of each row: unpatched its time; of the others the ratio to that, the median of interleaved pairs (and its "
    "quartiles). Operations are those that are dispatched, behind a stroke a GPU's kernels; *floor* is the same with "
    "all in bf16, unpatched; *watching* is `peft.boundary` alone."
)


def page(report: Mapping[str, Any]) -> str:
    """The Markdown of what :mod:`benchmarks` has written."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"# {report['machine']}", ""]
    lines += [f"{report['date']}, threads: {report['threads']}; {versions}.", "", f"    {report['command']}", ""]
    if note := report.get("note"):
        lines += [note, ""]
    lines += [ABOUT]
    if imported := report["import"]:
        ratio = imported["qlora_bf16_patch"] / imported["wrapt"]
        lines += ["", f"The import takes {ratio:.2f} times as long as `import wrapt`."]
    if first := report.get("first calls"):
        lines += ["", "The first call of a kind takes so many times as long as the second:", ""]
        lines += [f"- {name}: {ratio:.2f}" for name, ratio in first.items()]
    measured = {
        name: {condition: Measured(**of) for condition, of in row.items()} for name, row in report["rows"].items()
    }
    for kind in dict.fromkeys(_kind(name) for name in measured):
        lines += ["", f"## {kind}", "", *_table({name: row for name, row in measured.items() if _kind(name) == kind})]
    return "\n".join(lines) + "\n"


def cells(name: str, row: Mapping[str, Measured]) -> dict[str, str]:
    """A row's cells by column."""
    base = row["unpatched"]
    found = {"unpatched": "fails" if base.failure else f"{base.seconds * 1e3:.3f} ms"}
    if (tokens := generated(name)) and not base.failure:
        found["unpatched"] += f", {tokens / base.seconds:.1f} tokens/s"
    found |= {condition: _cell(row.get(condition)) for condition in COLUMNS[1:]}
    alive = {condition: m for condition, m in row.items() if not m.failure and condition != "off"}
    launches = any(m.kernels for m in alive.values())
    counts = (f"{condition} {m.operations}{f'/{m.kernels}' * launches}" for condition, m in alive.items())
    found["operations"] = " ".join(counts)
    return found | {"peak MiB": " ".join(f"{m.peak_bytes / 2**20:.1f}" for m in alive.values())}


def _kind(name: str) -> str:
    return name.partition(", ")[0]


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    if measured.failure:
        return "fails"
    if measured.ratio is None or measured.quartiles is None:
        return f"{measured.seconds * 1e3:.3f} ms"
    return f"{measured.ratio:.3f} ({measured.quartiles[0]:.2f} to {measured.quartiles[1]:.2f})"


def _table(rows: Mapping[str, Mapping[str, Measured]]) -> Iterator[str]:
    found = {name.partition(", ")[2]: cells(name, row) for name, row in rows.items()}
    columns = [column for column in next(iter(found.values())) if any(row.get(column) for row in found.values())]
    yield f"| | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for name, row in found.items():
        yield f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.summary", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    for file in parser.parse_args().files:
        file.with_suffix(".md").write_text(page(json.loads(file.read_text())))
