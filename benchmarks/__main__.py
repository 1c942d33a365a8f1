"""The table, and under ``benchmarks/results/`` a page and a JSON file with machine, versions, date and command."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qlora_bf16_patch.doctor.machine import processor
from toys.llama import DEEP, LLAMA_3_8B, SMALL

from . import rows
from .measure import Measured, measure
from .summary import cells, page

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "wrapt")


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")  # third parties' advice on toys
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # an 8-bit layer's, at every call
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, Measured]] = {}
    with Progress() as bar:
        task = bar.add_task("", total=None)
        for name, runs in planned(options):
            bar.update(task, description=name)
            results[name] = measure(runs, options.rounds, options.seconds, options.limit)
            write(options, results, {}, {})  # an interruption loses one row
    imported = rows.imports(options.rounds) if "import" in options.only else {}
    first = rows.first_calls([DEEP, SMALL], options.rounds) if "first" in options.only else {}
    write(options, results, imported, first)
    console = Console(width=200)
    console.print(table(results))
    if imported:
        ratio = imported["qlora_bf16_patch"] / imported["wrapt"]
        console.print(f"import: {ratio:.2f} times import wrapt ({imported['wrapt'] * 1e3:.1f} ms)")
    for name, ratio in first.items():
        console.print(f"first call of a kind, {name}: {ratio:.2f} times the second")
    console.print(f"written to {options.output}")


def write(
    options: argparse.Namespace,
    results: dict[str, dict[str, Measured]],
    imported: dict[str, float],
    first: dict[str, float],
) -> None:
    """The JSON file: machine, versions, date and command beside the rows. Of it a page, which git keeps."""
    report = {
        "machine": machine(),
        "threads": options.threads,
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("qlora-bf16-patch", *LIBRARIES)},
        "import": imported,
        "first calls": first,
        "rows": {name: {c: dataclasses.asdict(m) for c, m in row.items()} for name, row in results.items()},
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(page(report))


def planned(options: argparse.Namespace) -> Iterator[rows.Row]:
    """Every row that was asked for."""
    big = torch.cuda.is_available() and not options.quick
    shape = dataclasses.replace(LLAMA_3_8B, layers=options.layers) if big else SMALL
    kinds = {
        "layer": rows.layers([64, 512] if options.quick else options.widths),
        "token": rows.tokens([DEEP, SMALL]),
        "generate": rows.generation(
            shape, 8 if big else 4, options.batches if big else [1], options.contexts if big else [16]
        ),
        "training": rows.training(shape, options.contexts[-1] if big else 16),
    }
    return itertools.chain.from_iterable(kind for name, kind in kinds.items() if name in options.only)


def table(results: dict[str, dict[str, Measured]]) -> Table:
    """Times as ratios to unpatched, medians with their quartiles; operations and peak memory beside them."""
    result = Table("row", title=f"ratios to unpatched on {machine()}")
    for name, row in results.items():
        found = cells(name, row)
        for column in list(found)[len(result.columns) - 1 :]:
            result.add_column(column, justify="right")
        result.add_row(name, *found.values())
    return result


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()['name']}, {os.cpu_count()} cores"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    kinds = ["layer", "token", "first", "generate", "training", "import"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--quick", action="store_true", help="small layers and models alone")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512, 2048, 4096], help="of layers")
    parser.add_argument("--layers", type=int, default=LLAMA_3_8B.layers, help="of Llama 3 8B, on a GPU")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="of generation on a GPU")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048], help="of models on a GPU, in tokens")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of which a ratio is the median")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one condition in one round")
    parser.add_argument("--limit", type=float, default=20, help="seconds for a slow row, which gets fewer rounds")
    parser.add_argument("--threads", type=int, default=1)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / f"{kind}.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
