"""A selection of the sweep (``make sweep``): an architecture of each kind, under recipes of its family.

The runs are made by the sweep's own worker process, whose third parties' warnings are not this project's.
"""

from __future__ import annotations

import functools

import pytest

from sweep.results import FEW, RECIPES_OF, regressions
from sweep.workers import Worker

SELECTION = {
    "language": [
        "LlamaForCausalLM",
        "MixtralForCausalLM",  # routed experts, held as parameters
        "GPT2LMHeadModel",  # layer norms with biases
        "T5ForConditionalGeneration",  # a position bias as attention mask
        "BartForConditionalGeneration",
        "RobertaForSequenceClassification",
        "Qwen2_5_VLForConditionalGeneration",
        "WhisperForConditionalGeneration",  # convolutions
        "Exaone4ForCausalLM",  # norms of query and key, which eager attention multiplies with values
    ],
    "masked": ["DebertaV2ForMaskedLM", "FunnelForMaskedLM"],  # scores filled with the dtype's minimum; pooled queries
    "answers": ["BertForMultipleChoice", "T5ForQuestionAnswering"],
    "tokens": ["XLNetForTokenClassification"],
    "vision": [
        "ViTForImageClassification",
        "SegformerForSemanticSegmentation",  # batch norms
        "SwinBackbone",
        "RTDetrForObjectDetection",  # sampling at floating points
        "SiglipVisionModel",  # torch's own multi-head attention
    ],
    "speech": ["Wav2Vec2ConformerForCTC", "Speech2TextForConditionalGeneration"],
    "audio": ["ASTForAudioClassification", "Wav2Vec2ForXVector"],
    "video": ["VideoMAEForVideoClassification"],
    "image-text": ["SmolVLMForConditionalGeneration", "CLIPModel", "OwlViTForObjectDetection"],
    "time-series": ["PatchTSTForPrediction", "InformerForPrediction"],
    "bare": ["LxmertModel", "PerceiverModel"],
    "diffusers": ["FluxTransformer2DModel"],
    "hub": ["hub.Rotary", "hub.Experts", "hub.Scattered", "hub.RecurrentHead", "hub.CastInHelper", "hub.Checkpointed"],
}
# Of the language models these are prepared in every way, the others in those whose dtypes differ most.
IN_EVERY_WAY = ("LlamaForCausalLM", "MixtralForCausalLM", "T5ForConditionalGeneration")
SOME = ("qlora", "eager", "float32")
ARCHITECTURES = [(family, name) for family, names in SELECTION.items() for name in names]


@pytest.fixture(scope="module")
def sweep():
    worker = Worker()

    @functools.cache
    def runs(family, architecture):
        some = family == "language" and architecture not in IN_EVERY_WAY
        recipes = SOME if some else RECIPES_OF.get(family, FEW)
        return [run for recipe in recipes for run in worker.run(architecture, recipe, (False, True))]

    yield runs
    worker.stop()


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES)
def test_no_patched_run_mismatches_or_fails_where_the_unpatched_one_ran(sweep, family, architecture):
    runs = sweep(family, architecture)
    assert [(run.key, reason) for run, reason in regressions(runs)] == []
    assert all(run.outcome == "ok" for run in runs if run.patched), {run.message for run in runs if run.patched}


def test_the_selection_mismatches_without_the_patches(sweep):
    unpatched = [run for family, name in ARCHITECTURES for run in sweep(family, name) if not run.patched]
    mismatching = {run.architecture for run in unpatched if run.outcome == "mismatch"}
    assert mismatching >= {"LlamaForCausalLM", "MixtralForCausalLM", "WhisperForConditionalGeneration"}
    assert mismatching >= {"DebertaV2ForMaskedLM", "SegformerForSemanticSegmentation", "hub.Experts", "hub.Scattered"}
