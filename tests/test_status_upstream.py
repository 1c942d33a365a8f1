"""``status --upstream``: when each patch can go."""

import io
import json

import pytest
from rich.console import Console

import qlora_bf16_patch
from qlora_bf16_patch.commands import main, status
from qlora_bf16_patch.engine.statuses import Statuses
from qlora_bf16_patch.patches import CATALOGUE


def test_a_pipe_is_given_the_table_as_lines(capsys):
    assert main(["status", "--upstream"]) == 0
    assert capsys.readouterr().out == f"{Statuses(qlora_bf16_patch.status()).upstream()}\n"


def test_the_plain_status_has_one_line_of_it(capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("can go: none yet, since no release does by itself")


def test_as_json_every_row_has_its_threads_and_the_release(capsys):
    assert main(["status", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for patch in CATALOGUE:
        row = rows[patch.name]
        assert (tuple(row["reports"]), tuple(row["pull_requests"])) == (patch.reports, patch.pull_requests)
        assert row["mended_in"] == patch.mended_in


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_is_given_tables_that_fit_it_and_no_thread_is_cut(width, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(status, "console", lambda: Console(file=written, width=width, force_terminal=False))
    assert main(["status", "--upstream"]) == 0
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = written.getvalue().replace("│", " ").split()
    for patch in CATALOGUE:
        assert words.count(patch.name) == 1 + bool(patch.pull_requests)
        for thread in (*patch.reports, *patch.pull_requests):
            assert thread.rpartition("/")[2] in words
