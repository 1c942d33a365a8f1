"""A selection of the sweep (``make sweep``): one architecture of each kind, under every recipe.

The runs are made by the sweep's own worker process, whose third parties' warnings are not this project's.
"""

from __future__ import annotations

import functools

import pytest

from .sweep.results import RECIPES, regressions
from .sweep.workers import Worker

SELECTION = [
    "LlamaForCausalLM",
    "MixtralForCausalLM",  # routed experts, held as parameters
    "GPT2LMHeadModel",  # layer norms with biases
    "T5ForConditionalGeneration",  # a position bias as attention mask
    "BartForConditionalGeneration",
    "RobertaForSequenceClassification",
    "Qwen2_5_VLForConditionalGeneration",
    "WhisperForConditionalGeneration",  # convolutions
    "Exaone4ForCausalLM",  # norms of query and key, which eager attention multiplies with values
]


@pytest.fixture(scope="module")
def sweep():
    worker = Worker()

    @functools.cache
    def runs(architecture):
        return [run for recipe in RECIPES for run in worker.run(architecture, recipe, (False, True))]

    yield runs
    worker.stop()


@pytest.mark.parametrize("architecture", SELECTION)
def test_no_patched_run_mismatches_or_fails_where_the_unpatched_one_ran(sweep, architecture):
    runs = sweep(architecture)
    assert [(run.key, reason) for run, reason in regressions(runs)] == []
    assert any(run.outcome == "ok" for run in runs if run.patched)


def test_the_selection_mismatches_without_the_patches(sweep):
    unpatched = [run for name in SELECTION for run in sweep(name) if not run.patched]
    mismatching = {run.architecture for run in unpatched if run.outcome == "mismatch"}
    assert mismatching >= {"LlamaForCausalLM", "MixtralForCausalLM", "WhisperForConditionalGeneration"}
