"""A selection of the sweep: families of which some release refuses dtypes in its own code, and the common ones."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from sweep.results import Run, read, regressions

from .processes import last_line, run, told

CLASSES = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "GptOssForCausalLM"),
    # Mixtures of experts: DeepSeek-V3 adds up its experts' outputs by index_add_, which no autocast covers.
    *("MixtralForCausalLM", "Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM"),
    *("T5ForConditionalGeneration", "BartForConditionalGeneration", "LlamaForSequenceClassification"),
)
RECIPES = ("kbit", "qlora", "eager", "float32")


def swept() -> dict[str, Any]:
    """By class and recipe the outcomes off and on, what is wrong with the shim, and what it mended."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.jsonl")
        command = ("-m", "tests.versions.sweep", "--only", *CLASSES, "--recipes", *RECIPES, "--results", str(results))
        result = run(*command, minutes=60)
        runs = read(results)
    if not runs:
        return {"error": last_line(result.stderr)}
    found: dict[str, Any] = {}
    for one in runs:
        sides = found.setdefault(one.architecture, {}).setdefault(one.recipe, {"off": Counter(), "on": Counter()})
        sides["on" if one.patched else "off"][one.outcome] += 1
    return {
        "classes": found,
        "absent": [name for name in CLASSES if name not in found],
        "wrong": {called(run): told(reason) for run, reason in regressions(runs)},
        "mismatches": {called(run): told(run.message) for run in runs if run.outcome == "mismatch" and not run.patched},
        "errors": {called(run): told(run.message) for run in runs if run.outcome == "error" and run.patched},
    }


def called(run: Run) -> str:
    return f"{run.architecture} {run.recipe}: {run.mode}{' under autocast' * run.autocast}"
