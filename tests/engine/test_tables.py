"""What shows itself: printed, in IPython, in a notebook."""

import json
import pickle
from dataclasses import asdict
from html.parser import HTMLParser

import qlora_bf16_patch
from qlora_bf16_patch.engine.patch import Status
from qlora_bf16_patch.engine.statuses import Statuses
from qlora_bf16_patch.engine.tables import as_html, as_text

ROW = Status("a.patch", "active", "on, and <b>bold</b> & more", "default", None, "", ("a note <script>",))


class Cells(HTMLParser):
    """The words of each cell, in order, and the tags there were."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.words.append(data)


def test_statuses_are_a_list_that_prints_as_a_table():
    rows = Statuses([ROW])
    assert isinstance(rows, list)
    assert rows == [ROW]
    assert rows[0] is ROW
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["name"] == "a.patch"
    assert pickle.loads(pickle.dumps(rows)) == rows
    assert repr(rows) == repr([ROW])
    assert str(rows).splitlines() == [
        "name     state   reason                      decided_by  version",
        "a.patch  active  on, and <b>bold</b> & more  default",
        "",
        "a.patch: a note <script>",
    ]
    assert isinstance(qlora_bf16_patch.status(), Statuses)


def test_in_a_notebook_they_are_a_table_in_which_all_is_escaped():
    text = Statuses([ROW])._repr_html_()
    cells = Cells(text)
    assert set(cells.tags) == {"table", "thead", "tbody", "tr", "th", "td", "p"}
    told = ["a.patch", "active", "on, and <b>bold</b> & more", "default", "a.patch: a note <script>"]
    assert cells.words[5:] == told


def test_a_title_and_the_spaces_of_a_tree_are_kept():
    sections = [("training <1>", ("module",), [("(the model)",), ("  layers",)])]
    cells = Cells(as_html(sections, []))
    assert cells.words == ["training <1>", "module", "(the model)", "  layers"]
    assert "pre-wrap" in as_html(sections, [])
    assert as_text(sections, ["a line"]) == "training <1>\n\nmodule\n(the model)\n  layers\n\na line"


def test_no_rows_at_all_are_no_error():
    assert str(Statuses()).splitlines() == ["name  state  reason  decided_by  version"]
    assert Statuses()._repr_html_().startswith("<table>")
    assert as_html([], ["nothing"]) == "<p>nothing</p>"
