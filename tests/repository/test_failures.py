"""Each row of docs/failures.md has tests that are marked with it, and of which one fails without the shim.

``pytest -m "failure(row=14)"`` runs those of one row. A row that is out of reach says so, and has none.
"""

import os
import re
import subprocess
import sys
from collections import defaultdict
from xml.etree import ElementTree

import pytest

from .packages import ROOT

ROWS = {
    int(number): answer
    for number, answer in re.findall(
        r"^\| (\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/failures.md").read_text(), re.MULTILINE
    )
}
IN_REACH = [row for row, answer in ROWS.items() if not answer.startswith("out of reach")]
FILES = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.failure(" in file.read_text())


@pytest.fixture(scope="module")
def without_the_shim(tmp_path_factory):
    """By row, whether each of its tests failed in a process that has switched everything off, up to one that did."""
    report = tmp_path_factory.mktemp("failures") / "report.xml"
    options = f"-q --tb=no -p no:cacheprovider -p {__package__}.until_failed -m failure --junitxml={report}".split()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *FILES],
        cwd=ROOT,
        env={**os.environ, "QLORA_BF16_PATCH": "off", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert report.exists(), run.stdout + run.stderr
    found = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        assert case.find("error") is None, ElementTree.tostring(case, encoding="unicode")
        for one in case.iter("property"):
            found[int(one.get("value"))].append(case.find("failure") is not None)
    return found


def test_the_rows_are_numbered_from_one_on():
    assert list(ROWS) == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 34


@pytest.mark.parametrize("row", IN_REACH)
def test_a_row_has_a_test_that_fails_without_the_shim(without_the_shim, row):
    assert any(without_the_shim[row])


def test_no_other_row_has_one(without_the_shim):
    assert sorted(row for row, outcomes in without_the_shim.items() if outcomes) == IN_REACH
