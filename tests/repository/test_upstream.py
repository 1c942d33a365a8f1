"""docs/upstream.md says of each patch what the catalogue says."""

import re

import pytest

import qlora_bf16_patch
from qlora_bf16_patch.defects.promise import ALWAYS
from qlora_bf16_patch.doctor import needed
from qlora_bf16_patch.engine.statuses import Statuses
from qlora_bf16_patch.patches import CATALOGUE

from ..pages import line
from .packages import ROOT

PAGE = (ROOT / "docs/upstream.md").read_text()
THREAD = re.compile(
    r"^\| (\S+/\S+#\d+) \| (issue|pull request), (open|closed|merged)(?:, in [\w. ]+)? \|", re.MULTILINE
)


def patch_row(patch):
    """A patch's row of the first table."""
    threads = (" ".join(one) or "none found" for one in (patch.reports, patch.pull_requests))
    release = f"{patch.distribution} {patch.mended_in}" if patch.mended_in else "no release yet"
    return line([f"`{patch.name}`", release, *threads])


def promise_rows(patch):
    """A patch's rows of the second table."""
    for promise in needed.promises(patch):
        kept = f"since {patch.distribution} {promise.kept_from}" if promise.kept_from else "no release yet"
        kept = "every release" if promise.kept_from == ALWAYS else kept
        yield line([f"`{patch.name}`", promise.text, f"not on {promise.broken_on}" if promise.broken_on else kept])


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_the_page_has_a_row_for_each_patch_and_for_each_of_its_promises(patch):
    for row in (patch_row(patch), *promise_rows(patch)):
        assert row in PAGE.splitlines()


def test_the_page_has_no_rows_of_patches_that_are_not_there():
    rows = [row for patch in CATALOGUE for row in (patch_row(patch), *promise_rows(patch))]
    assert [row for row in PAGE.splitlines() if row.startswith("| `")] == sorted(rows, key=PAGE.index)


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_each_thread_has_a_row_that_says_what_it_is_and_its_state(patch):
    kinds = {thread: kind for thread, kind, _ in THREAD.findall(PAGE)}
    assert set(patch.reports) <= kinds.keys()
    assert all(kinds[thread] == "pull request" for thread in patch.pull_requests)


def test_each_thread_on_the_page_is_one_of_the_catalogues_or_broke_what_a_patch_mends():
    threads = [thread for thread, *_ in THREAD.findall(PAGE)]
    known = {thread for patch in CATALOGUE for thread in (*patch.reports, *patch.pull_requests)}
    assert set(threads) - known == {"bitsandbytes-foundation/bitsandbytes#1804"}
    assert len(threads) == len(set(threads))
    rows = PAGE.partition("## The threads")[2]
    assert len(threads) == len(re.findall(r"^\| \S+#\d+ ", rows, re.MULTILINE)), "a row is not understood"


def test_the_transcript_is_what_the_command_prints():
    names = {patch.name for patch in CATALOGUE}
    found = Statuses(row for row in qlora_bf16_patch.status() if row.name in names)
    printed = "$ qlora-bf16-patch status --upstream | cat\n" + str(found.upstream())
    assert without_releases(printed) in without_releases(PAGE)
    assert without_releases(str(found).splitlines()[-1]) in without_releases(PAGE)


def without_releases(text):
    """Whatever is installed; the columns are as wide as it."""
    return re.sub(r" +", " ", re.sub(r" \d+\.\d+\S* ", " ", text))
