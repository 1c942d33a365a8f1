"""``make test COVERAGE=1``: what is left out of the count says why, and is still there."""

import configparser
import re

import pytest

from .packages import ROOT

TEXT = (ROOT / "setup.cfg").read_text()
SETTINGS = configparser.ConfigParser(interpolation=None)
SETTINGS.read_string(TEXT)
KINDS = {"no cover": "exclude_lines", "no branch": "partial_branches"}
PATTERNS = {kind: SETTINGS["coverage:report"][name].split("\n")[1:] for kind, name in KINDS.items()}
FILES = sorted((ROOT / "qlora_bf16_patch").rglob("*.py"))
LINES = [line for path in FILES for line in path.read_text().splitlines()]
PRAGMAS = [line.strip() for line in LINES if re.search(r"#\s*pragma", line, re.IGNORECASE)]


def is_left_out(line, kind):
    """As coverage.py looks for its patterns, in each line of the source."""
    return any(re.search(pattern, line) for pattern in PATTERNS[kind])


def test_branches_are_counted_and_fewer_than_95_of_100_are_a_failure():
    assert SETTINGS["coverage:run"].getboolean("branch")
    assert SETTINGS["coverage:report"].getint("fail_under") >= 95


@pytest.mark.parametrize("kind", KINDS)
def test_a_pragma_without_a_reason_leaves_nothing_out(kind):
    assert is_left_out(f"x = 1  # pragma: {kind}: Windows has none", kind)
    for bare in (f"# pragma: {kind}", f"# pragma: {kind}:", f"# pragma: {kind}: ", f"# pragma: {kind} # why"):
        assert not is_left_out(f"x = 1  {bare}", kind), bare


@pytest.mark.parametrize("line", PRAGMAS)
def test_each_pragma_of_the_package_is_one_with_a_reason(line):
    assert is_left_out(line, "no cover") or is_left_out(line, "no branch")


def test_each_pattern_has_a_comment_that_says_why_and_is_still_of_use():
    lines = [line.strip() for line in TEXT.splitlines()]
    for pattern in [pattern for kind in KINDS for pattern in PATTERNS[kind]]:
        above = lines[lines.index(pattern) - 1]
        assert "pragma" in pattern or re.match(r"# \w", above), pattern
        assert any(re.search(pattern, line) for line in LINES), pattern
