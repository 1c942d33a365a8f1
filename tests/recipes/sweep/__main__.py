"""The sweep: ``python -m tests.recipes.sweep [--only 'Llama*' ...] [--recipes plain ...] [--resume]``.

Exit status 1 if a patched run mismatches, or fails where the unpatched one ran.
"""

from __future__ import annotations

import argparse
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .results import RECIPES, Run, out_of_reach, planned, read, regressions
from .workers import Worker

OUT_OF_REACH = Path(__file__).with_name("out_of_reach.json")


def main() -> int:
    options = arguments()
    sides = [patched for patched in (False, True) if options.sides in ("both", "patched" if patched else "unpatched")]
    if not options.resume:
        options.results.unlink(missing_ok=True)
    done = {(run.key, run.patched) for run in read(options.results)}
    worker = Worker(options.limit)
    names = [name for name in worker.architectures() if any(fnmatch(name, glob) for glob in options.only)]
    jobs = [(name, recipe) for name in names for recipe in options.recipes]
    console = Console()
    with progress(console) as bar, options.results.open("a") as file:
        task = bar.add_task("", total=len(jobs))
        for name, recipe in jobs:
            bar.update(task, description=f"{name} {recipe}")
            if any((run.key, run.patched) not in done for run in planned(name, recipe, sides)):
                for run in worker.run(name, recipe, sides):
                    file.write(run.to_json() + "\n")
                file.flush()
            bar.advance(task)
    worker.stop()
    runs = [run for run in read(options.results) if (run.architecture, run.recipe) in set(jobs)]
    return report(console, runs, options)


def report(console: Console, runs: list[Run], options: argparse.Namespace) -> int:
    """The table, what is wrong, and the list of what is out of reach."""
    console.print(table(runs))
    wrong = list(regressions(runs))
    for run, reason in wrong:
        console.print(
            f"{' '.join(map(str, run.key))}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if options.write_out_of_reach:
        OUT_OF_REACH.write_text(json.dumps(out_of_reach(runs), indent=1) + "\n")
    return 1 if wrong else 0


def table(runs: list[Run]) -> Table:
    """Counts of outcomes, the mismatches under autocast among them, and the median distance outside autocast."""
    result = Table(title=f"{len({run.architecture for run in runs})} architectures")
    for column in ("recipe", "patches", "runs", "ok", "mismatch", "autocast", "other", "apart"):
        result.add_column(column, justify="left" if column in ("recipe", "patches") else "right")
    for recipe in (*RECIPES, "all"):
        for patched in (False, True):
            some = [run for run in runs if run.patched == patched and recipe in (run.recipe, "all")]
            if some:
                result.add_row(recipe, "on" if patched else "off", *counts(some), end_section=patched)
    return result


def counts(runs: list[Run]) -> list[str]:
    kinds = [run.outcome for run in runs]
    autocast = sum(run.outcome == "mismatch" and run.autocast for run in runs)
    apart = sorted(run.apart for run in runs if run.apart is not None and not run.autocast)
    return [
        *map(str, (len(runs), kinds.count("ok"), kinds.count("mismatch"), autocast, kinds.count("error"))),
        f"{apart[len(apart) // 2]:.2g}" if apart else "",
    ]


def progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="architectures, by class name")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    for side in ("unpatched", "patched"):
        parser.add_argument(f"--{side}", dest="sides", action="store_const", const=side, help=f"only the {side} runs")
    parser.set_defaults(sides="both")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.jsonl"), help="a line a run")
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold already")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a run, preparation included")
    parser.add_argument("--write-out-of-reach", action="store_true", help=f"rewrite {OUT_OF_REACH.name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
