"""What was measured is kept as pages that a person can read, each with the command that measures it again."""

import re

import pytest

from .packages import ROOT, tracked

FOLDER = "benchmarks/results"


def test_git_keeps_pages_alone():
    assert {name.rpartition(".")[2] for name in tracked(FOLDER)} == {"md"}


@pytest.mark.parametrize("page", sorted((ROOT / FOLDER).glob("*.md")), ids=lambda page: page.stem)
def test_a_page_has_its_machine_its_releases_and_its_command(page):
    text = page.read_text()
    assert re.match(r"# .*(cores|NVIDIA)", text)
    assert re.search(r"^\d{4}-\d\d-\d\d, threads: \d+; qlora-bf16-patch \S+, torch \S+, ", text, re.MULTILINE)
    assert re.search(r"^    python -m benchmarks( |$)", text, re.MULTILINE)
    assert re.search(r"^## .*\n\n\| \| unpatched \| ", text, re.MULTILINE)
