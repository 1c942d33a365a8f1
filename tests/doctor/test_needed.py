"""Each patch's promises, without it and with it: a patch can go once a release keeps all of them by itself."""

import pytest
import torch

import qlora_bf16_patch
from qlora_bf16_patch.defects.promise import Promise
from qlora_bf16_patch.doctor import needed
from qlora_bf16_patch.doctor.needed import Answer, sentence
from qlora_bf16_patch.engine.patch import Patch
from qlora_bf16_patch.engine.versions import installed
from qlora_bf16_patch.patches import CATALOGUE

PATCH = Patch("library.thing", "library", "f", "m:f", distribution="library")


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_a_patch_makes_its_promises_true_and_is_still_needed_for_one(patch):
    answers = needed.answers(patch)
    assert answers, "it promises nothing"
    for answer in answers:
        assert answer.patched, answer
    done = f"{patch.distribution} {installed(patch.distribution)} does all of it by itself: {patch.name} can go"
    assert not all(answer.itself for answer in answers), done


def test_the_switches_are_as_before():
    before = [(row.state, row.decided_by) for row in qlora_bf16_patch.status()]
    needed.answers(CATALOGUE[0])
    assert [(row.state, row.decided_by) for row in qlora_bf16_patch.status()] == before


def test_a_refusal_of_dtypes_is_an_answer_and_another_error_is_none(monkeypatch):
    def refuses():
        return torch.ones(2, 2) @ torch.ones(2, 2, dtype=torch.bfloat16)

    def breaks():
        raise OSError("no such kernel")

    promises = (Promise("takes both", refuses), Promise("runs at all", breaks))
    monkeypatch.setattr(needed, "promises", lambda patch: promises)
    refused, broken = needed.answers(CATALOGUE[0])
    assert (refused.itself, refused.patched, refused.error) == (False, False, "")
    assert (broken.itself, broken.patched, broken.error) == (None, None, "OSError: no such kernel")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            [Answer("keeps a", True, True), Answer("leaves b", False, True)],
            "library 1.0 keeps a itself; only with this patch it leaves b",
        ),
        (
            [Answer("keeps a", False, True), Answer("leaves b", False, True), Answer("takes c", False, True)],
            "only with this patch library 1.0 keeps a, leaves b and takes c",
        ),
        (
            [Answer("keeps a", True, True)],
            "library 1.0 keeps a itself: it does not need this patch for any of what was asked",
        ),
        (
            [Answer("keeps a", True, True), Answer("leaves b", False, False)],
            "library 1.0 keeps a itself; it does not hold here with the patch on that it leaves b",
        ),
        (
            [Answer("keeps a", None, None, "OSError: no")],
            "could not be asked here: whether library 1.0 keeps a (OSError: no)",
        ),
    ],
    ids=["some", "none", "all", "broken", "unknown"],
)
def test_the_sentence_says_what_the_library_does_itself_and_what_the_patch_does(answers, told):
    assert sentence(PATCH, "1.0", answers) == told


def test_a_patch_of_a_third_party_may_promise_nothing():
    assert needed.answers(PATCH) == []
