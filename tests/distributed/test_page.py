"""The page of engines says what the records and the engines' own lines do."""

import re

import pytest

from . import page as written
from .engines import CHECKPOINTED, ENGINES, TRAINER

RECORDS = written.records()


def test_the_page_is_what_the_records_and_the_lines_say():
    assert written.PAGE.read_text() == written.page(), "python -m tests.distributed.page --write"


def test_every_engine_has_a_section_and_a_record_and_every_record_an_engine():
    assert {name for section in written.SECTIONS for name in section.engines} == {TRAINER, *ENGINES}
    assert RECORDS.keys() == {TRAINER, *ENGINES}
    assert {*written.RECORDS.glob("*.json")} == {*map(written.file_of, RECORDS)}


@pytest.mark.parametrize("section", written.SECTIONS, ids=lambda section: section.title)
def test_a_section_shows_how_a_model_comes_into_the_engine_and_generates(section):
    shown = written.lines(section.source, section.classes).splitlines()
    assert len(shown) >= 2
    assert sum("generate(" in line for line in shown) == 1
    assert not any("self" in line for line in shown)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_same_bits_off_and_on_and_names_no_path_of_a_machine(name):
    record, text = RECORDS[name], written.file_of(name).read_text()
    assert not re.search(r"/(work|tmp|root|home|opt|usr)/", text)
    assert record["ranks"] == 2
    assert [*record["runs"]] == ([name] if name == TRAINER else [name, name + CHECKPOINTED])
    for run in record["runs"].values():
        tried = {what: text for what, text in run["without"].items() if text != "under autocast"}
        assert tried
        assert all("same dtype" in text for text in tried.values())
        assert {run["with"][what] for what in tried} == {"runs"}
        assert all(run["the same without and with"].values())
        assert all(run["the same on both ranks"].values())
        assert run["unchanged by evaluation and generation"]
