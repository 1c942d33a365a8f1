"""When a patch can go, as the status tells it."""

import json
from dataclasses import asdict

import pytest

from qlora_bf16_patch.engine.patch import Status
from qlora_bf16_patch.engine.statuses import Statuses, can_go

from .registries import make_registry


def row(name="a.patch", version="1.2", **fields):
    return Status(name, "active", "", "default", version, "", **fields)


@pytest.mark.parametrize(
    ("version", "mended_in", "told"),
    [
        ("1.2", "", "not yet"),
        ("1.2", "1.3", "with 1.3"),
        ("1.3", "1.3", "now"),
        ("1.10+cpu", "1.3", "now"),
        ("1.3.dev0", "1.3", "with 1.3"),
        (None, "1.3", "with 1.3"),
        ("a fork's", "1.3", "with 1.3"),
    ],
)
def test_a_patch_can_go_with_the_release_that_mends_it(version, mended_in, told):
    assert can_go(row(version=version, mended_in=mended_in)) == told


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            [row(reports=("owner/repo#1",)), row("b.patch")],
            "can go: none yet, since no release does by itself all that one of them does",
        ),
        (
            [row(mended_in="1.3"), row("b.patch", mended_in="1.2"), row("c.patch", pull_requests=("owner/repo#2",))],
            "can go: a.patch with 1.3, b.patch now",
        ),
    ],
    ids=["none", "some"],
)
def test_a_line_beneath_the_table_says_what_can_go(rows, line):
    line += " (qlora-bf16-patch status --upstream)"
    assert str(Statuses(rows)).splitlines()[-1] == line
    assert f"<p>{line}</p>" in Statuses(rows)._repr_html_()


def test_the_upstream_table_has_a_row_for_each_patch_and_another_for_its_pull_requests():
    rows = Statuses([row(reports=("owner/repo#1", "other/thing#22"), pull_requests=("owner/repo#3",)), row("b.patch")])
    assert str(rows.upstream()).splitlines() == [
        "name     version  can go   reports",
        "a.patch  1.2      not yet  repo#1 thing#22",
        "b.patch  1.2      not yet",
        "",
        "name     pull requests that mend a part of it, or set out to",
        "a.patch  repo#3",
    ]
    assert rows.upstream()._repr_html_().count("<table>") == 2


def test_a_third_partys_patch_that_says_nothing_of_its_upstream_has_a_row_and_no_line(library):
    rows = make_registry().status()
    assert "can go" not in str(rows)
    assert str(rows.upstream()).splitlines()[1:] == [f"fake.layer  {rows[0].version}    not yet"]


def test_a_third_partys_patch_hands_on_what_it_says(library):
    said = {"reports": ("owner/repo#1",), "pull_requests": ("owner/repo#2",), "mended_in": "99"}
    rows = make_registry(**said).status()
    assert {name: getattr(rows[0], name) for name in said} == said
    assert Status(**json.loads(json.dumps(asdict(rows[0])))).mended_in == "99"
    assert "can go: fake.layer with 99" in str(rows)
