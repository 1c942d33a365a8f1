"""The sweep: ``python -m sweep [--families vision ...] [--only 'Llama*' ...] [--resume]``.

Exit status 1 if a patched run mismatches, or fails where the unpatched one ran.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .results import FEW, RECIPES, RECIPES_OF, Run, out_of_reach, planned, read, regressions
from .workers import Worker

OUT_OF_REACH = Path(__file__).with_name("out_of_reach.json")


def main() -> int:
    options = arguments()
    sides = [patched for patched in (False, True) if options.sides in ("both", "patched" if patched else "unpatched")]
    if not options.resume:
        options.results.unlink(missing_ok=True)
    done = {(run.key, run.patched) for run in read(options.results)}
    worker = Worker(options.limit)
    families = selected(worker.families(), options)
    jobs = [
        (name, recipe) for name, family in families.items() for recipe in options.recipes or RECIPES_OF.get(family, FEW)
    ]
    console = Console()
    with progress(console) as bar, options.results.open("a") as file:
        file.write("\n" * bool(file.tell()))  # the last line may have been cut off
        task = bar.add_task("", total=len(jobs))
        for name, recipe in jobs:
            bar.update(task, description=f"{families[name]}: {name} {recipe}")
            if any((run.key, run.patched) not in done for run in planned(name, recipe, sides)):
                for run in worker.run(name, recipe, sides):
                    file.write(run.to_json() + "\n")
                file.flush()
            bar.advance(task)
    worker.stop()
    runs = [run for run in read(options.results) if (run.architecture, run.recipe) in set(jobs)]
    return report(console, runs, families, options)


def selected(families: dict[str, str], options: argparse.Namespace) -> dict[str, str]:
    """The architectures that are asked for."""
    if unknown := set(options.families or ()) - set(families.values()):
        known = ", ".join(dict.fromkeys(families.values()))
        raise SystemExit(f"unknown families: {', '.join(sorted(unknown))}; known are {known}")
    return {
        name: family
        for name, family in families.items()
        if family in (options.families or [family]) and any(fnmatch(name, glob) for glob in options.only)
    }


def report(console: Console, runs: list[Run], families: dict[str, str], options: argparse.Namespace) -> int:
    """The tables, what is wrong, and the list of what is out of reach."""
    console.print(table(runs, "recipe", lambda run: run.recipe))
    console.print(table(runs, "family", lambda run: families[run.architecture]))
    wrong = list(regressions(runs))
    for run, reason in wrong:
        console.print(
            f"{' '.join(map(str, run.key))}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if options.write_out_of_reach:
        known = json.loads(OUT_OF_REACH.read_text())
        others = {name: reasons for name, reasons in known.items() if name not in {run.architecture for run in runs}}
        listed = dict(sorted((others | out_of_reach(runs)).items()))
        OUT_OF_REACH.write_text(json.dumps(listed, indent=1) + "\n")
    return 1 if wrong else 0


def table(runs: list[Run], title: str, group: Callable[[Run], str]) -> Table:
    """By group, counts of outcomes, mismatches under autocast among them, and the median distance outside autocast."""
    result = Table(title=f"{len({run.architecture for run in runs})} architectures")
    for column in (title, "patches", "classes", "runs", "ok", "mismatch", "autocast", "other", "apart"):
        result.add_column(column, justify="left" if column in (title, "patches") else "right")
    for name in (*dict.fromkeys(map(group, runs)), "all"):
        for patched in (False, True):
            some = [run for run in runs if run.patched == patched and name in (group(run), "all")]
            if some:
                result.add_row(name, "on" if patched else "off", *counts(some), end_section=patched)
    return result


def counts(runs: list[Run]) -> list[str]:
    kinds = [run.outcome for run in runs]
    autocast = sum(run.outcome == "mismatch" and run.autocast for run in runs)
    apart = sorted(run.apart for run in runs if run.apart is not None and not run.autocast)
    return [
        *map(
            str,
            (
                len({run.architecture for run in runs}),
                len(runs),
                kinds.count("ok"),
                kinds.count("mismatch"),
                autocast,
                kinds.count("error"),
            ),
        ),
        f"{apart[len(apart) // 2]:.2g}" if apart else "",
    ]


def progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="architectures, by class name")
    parser.add_argument("--families", nargs="+", metavar="FAMILY", help="e.g. language vision speech; all by default")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="by default all, or few, by family")
    for side in ("unpatched", "patched"):
        parser.add_argument(f"--{side}", dest="sides", action="store_const", const=side, help=f"only the {side} runs")
    parser.set_defaults(sides="both")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.jsonl"), help="a line a run")
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold already")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a run, preparation included")
    parser.add_argument(
        "--write-out-of-reach",
        action="store_true",
        help=f"rewrite {OUT_OF_REACH.name}, what it says of those that were run",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
