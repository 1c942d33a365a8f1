"""One run's outcome, as a line of JSON, and what a set of them says. Imports nothing heavy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPES = ("plain", "kbit", "qlora", "eager", "norms32", "trl", "heads", "adapters16", "dropout", "float32")
MODES = ("generate", "train")
# How far apart logits are that differ by rounding alone, as a share of the largest: bf16 keeps 8 bits, and the
# roundings of a toy's few layers add up.
ROUNDING = 0.03
# They draw the seed of their dropout anew at each call, by torch.seed() (modeling_reformer.py, _init_attention_seed).
NEVER_THE_SAME = ("ReformerForSequenceClassification", "ReformerModelWithLMHead")
DROPOUT = ("dropout", "float32")


@dataclass(frozen=True)
class Run:
    """One of the eight runs of an architecture and a recipe.

    Attributes:
        frames: the traceback's deepest.
        apart: distance of the logits from the unpatched ones under autocast.
        same: whether logits, or losses, are bit for bit those of the unpatched run; None where that one failed.
        agreeing: whether contract D applies: no module is given another dtype than it computes in.
    """

    architecture: str
    recipe: str
    mode: str
    autocast: bool
    patched: bool
    outcome: str = "ok"  # or "mismatch" or "error"
    message: str = ""
    frames: tuple[str, ...] = ()
    dtype: str = ""
    apart: float | None = None
    same: bool | None = None
    agreeing: bool = False

    @property
    def key(self) -> tuple[str, str, str, bool]:
        return self.architecture, self.recipe, self.mode, self.autocast

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def planned(architecture: str, recipe: str, sides: Iterable[bool]) -> list[Run]:
    """The runs of one model. Unpatched under autocast comes first: its logits are what the others' are held against."""
    return [
        Run(architecture, recipe, mode, autocast, patched)
        for mode in MODES
        for autocast in (True, False)
        for patched in sides
    ]


def read(file: Path) -> list[Run]:
    """The runs in ``file``; an interrupted last line is left out."""
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    runs = [Run(**{**json.loads(line), "frames": ()}) for line in lines]
    return list({(run.key, run.patched): run for run in runs}.values())


def regressions(runs: Iterable[Run]) -> Iterator[tuple[Run, str]]:
    """The patched runs that must not be, each with what is wrong."""
    for unpatched, patched in pairs(runs):
        if patched is None:
            continue
        if patched.outcome == "mismatch":
            yield patched, patched.message
        elif patched.outcome == "error" and unpatched is not None and unpatched.outcome == "ok":
            yield patched, f"ran unpatched: {patched.message}"
        elif (patched.apart or 0) > max(ROUNDING, 2 * ((unpatched and unpatched.apart) or 0)):  # it rounds too
            yield patched, f"logits are {patched.apart} apart from those under autocast"
        elif patched.recipe in DROPOUT and patched.architecture in NEVER_THE_SAME:
            continue
        elif patched.same is False and (patched.agreeing or patched.autocast or patched.mode == "train"):
            why = (
                "all dtypes agree"
                if patched.agreeing
                else "it runs under autocast"
                if patched.autocast
                else "it trains"
            )
            yield patched, f"{why}, but the bits are not the unpatched ones"


def out_of_reach(runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """What fails for another reason with the patches as without: by architecture, the runs and their reason."""
    failing: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for unpatched, patched in pairs(runs):
        if unpatched and unpatched.outcome == "error" and (patched is None or patched.outcome == "error"):
            mode = unpatched.mode + " under autocast" * unpatched.autocast
            failing[unpatched.architecture, unpatched.message][unpatched.recipe].append(mode)
    listed: dict[str, dict[str, str]] = defaultdict(dict)
    for (architecture, reason), modes in sorted(failing.items()):
        for some in sorted({tuple(sorted(names)) for names in modes.values()}):
            recipes = [recipe for recipe in RECIPES if tuple(sorted(modes.get(recipe, ()))) == some]
            every = len(recipes) == len(RECIPES), len(some) == 2 * len(MODES)
            name = (
                f"{'every recipe' if every[0] else ' '.join(recipes)}: {'every run' if every[1] else ', '.join(some)}"
            )
            listed[architecture][name] = reason
    return listed


def pairs(runs: Iterable[Run]) -> Iterator[tuple[Run | None, Run | None]]:
    """The same run without and with the patches."""
    sides: dict[tuple[str, str, str, bool], dict[bool, Run]] = defaultdict(dict)
    for run in runs:
        sides[run.key][run.patched] = run
    for pair in sides.values():
        yield pair.get(False), pair.get(True)
