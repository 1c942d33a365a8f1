"""Hold the report's mismatches against a trace, for toys of every language model of transformers that can be built.

``python -m tests.inspection [MODEL ...]`` takes some minutes, and prints what differs and a line of sums a recipe.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import qlora_bf16_patch
from sweep import recipes, runs
from sweep.families import LANGUAGE

RECIPES = ("kbit", "qlora")


def held_against(name: str, recipe: str) -> Counter[str]:
    """What comes of one toy that is prepared by one recipe: an evaluation, and a generation where it can."""
    toy = runs.TOYS[name]
    try:
        model = recipes.prepared(toy, runs.checkpoint(name), recipe)
        report = qlora_bf16_patch.report(model)
        with qlora_bf16_patch.trace(model) as trace:
            runs.generate(toy, model, False)
    except Exception as error:
        print(f"{name}, {recipe}: not run: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return Counter({"not run": 1})
    told = {one.path for one in report.mismatches()}
    possible = {one.path for one in report.findings if one.kind == "possible mismatch"}
    cast = {one.path for one in trace.mismatches()}
    for what, paths in (("cast and not told", cast - told - possible), ("told and not cast", told - cast)):
        if paths:
            print(f"{name}, {recipe}: {what}: {', '.join(sorted(paths))}")
    return Counter(
        {
            "run": 1,
            "with a cast": bool(cast),
            "all told, and no other": told == cast,
            "all told, possible ones included": cast <= told | possible,
            "told, and not cast": bool(told - cast),
        }
    )


def main(names: list[str]) -> None:
    names = names or [name for name, toy in runs.TOYS.items() if toy.family == LANGUAGE]
    warnings.simplefilter("ignore")
    sums: dict[str, Counter[str]] = {recipe: Counter() for recipe in RECIPES}
    for name in names:
        for recipe in RECIPES:
            sums[recipe].update(held_against(name, recipe))
    for recipe, counts in sums.items():
        print(f"{recipe}: {', '.join(f'{count} {what}' for what, count in counts.items())}")


main(sys.argv[1:])
