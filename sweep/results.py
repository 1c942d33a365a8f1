"""One run's outcome, as a line of JSON, and what a set of them says. Imports nothing heavy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPES = ("plain", "kbit", "qlora", "eager", "norms32", "trl", "heads", "adapters16", "dropout", "float32")
# What a family is swept with where nothing is asked for.
RECIPES_OF = {"language": RECIPES, "diffusers": ("plain", "kbit", "qlora"), "hub": ("plain", "kbit", "qlora")}
FEW = ("kbit", "qlora")
MODES = ("generate", "train")
# How far apart logits are that differ by rounding alone, as a share of the largest: bf16 keeps 8 bits, and the
# roundings of a toy's few layers add up.
ROUNDING = 0.03
# They draw the seed of their dropout anew at each call, by torch.seed() (modeling_reformer.py, _init_attention_seed).
NEVER_THE_SAME = ("ReformerForSequenceClassification", "ReformerModelWithLMHead")
DROPOUT = ("dropout", "float32")
# Contract A over D: unpatched, bitsandbytes casts a float32 bias for good at the first step, and at the second a model
# computes in that bias's dtype (diffusers 0.42.1, modeling_utils.py, get_parameter_dtype).
READ_A_BIAS = {
    "Kandinsky6Transformer3DModel": ("kbit",),
    "MiniMaxH3Transformer3DModel": ("kbit", "qlora"),
    "MotifVideoTransformer3DModel": ("kbit",),
    "SanaWMTransformer3DModel": ("kbit",),
    "SkyReelsV2Transformer3DModel": ("kbit",),
}
# Mended, and then out of reach: FlexAttention has no backward on a CPU (torch 2.13.0).
WITHOUT_BACKWARD = ("AnyFlowFARTransformer3DModel",)


@dataclass(frozen=True)
class Run:
    """One of the eight runs of an architecture and a recipe.

    Attributes:
        frames: the traceback's deepest.
        apart: distance of the logits from the unpatched ones under autocast, or where there are none from those of the
            same weights in float32.
        rounding: how far autocast alone is from the latter.
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
    rounding: float | None = None
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
    runs = list(runs)
    unpatched_errors = {(*run.key[:3], run.message) for run in runs if run.outcome == "error" and not run.patched}
    for unpatched, patched in pairs(runs):
        if patched is None or (patched.outcome == "error" and (*patched.key[:3], patched.message) in unpatched_errors):
            continue
        if patched.outcome == "mismatch":
            yield patched, patched.message
        elif patched.architecture in WITHOUT_BACKWARD and "FlexAttention does not support backward" in patched.message:
            continue
        elif patched.outcome == "error" and unpatched is not None and unpatched.outcome != "error":
            yield patched, f"{'ran' if unpatched.outcome == 'ok' else 'mismatched'} unpatched: {patched.message}"
        elif (patched.apart or 0) > bound(unpatched, patched):
            yield patched, f"logits are {patched.apart} apart from the reference"
        elif patched.recipe in DROPOUT and patched.architecture in NEVER_THE_SAME:
            continue
        elif patched.mode == "train" and patched.recipe in READ_A_BIAS.get(patched.architecture, ()):
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


def bound(unpatched: Run | None, patched: Run) -> float:
    """How far apart the logits may be: a model that chooses (its queries, its experts) rounds to another choice."""
    return max(ROUNDING, 2 * ((unpatched and unpatched.apart) or 0), 2 * (patched.rounding or 0))


def out_of_reach(runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """What fails for another reason with the patches as without: by architecture, the runs and their reason."""
    failing: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    runs = list(runs)
    swept: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        swept[run.architecture].add(run.recipe)
    for unpatched, patched in pairs(runs):
        if unpatched and unpatched.outcome == "error" and (patched is None or patched.outcome == "error"):
            mode = unpatched.mode + " under autocast" * unpatched.autocast
            failing[unpatched.architecture, unpatched.message][unpatched.recipe].append(mode)
    listed: dict[str, dict[str, str]] = defaultdict(dict)
    for (architecture, reason), modes in sorted(failing.items()):
        for some in sorted({tuple(sorted(names)) for names in modes.values()}):
            recipes = [recipe for recipe in RECIPES if tuple(sorted(modes.get(recipe, ()))) == some]
            every = set(recipes) == swept[architecture], len(some) == 2 * len(MODES)
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
