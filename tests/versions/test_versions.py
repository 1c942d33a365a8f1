"""The floors, the classifiers, the README and the page of versions say what versions.py and the records do."""

import configparser
import json
import re
import types

import pytest
import torch
from bitsandbytes import functional
from packaging.requirements import Requirement
from packaging.version import Version

from qlora_bf16_patch.patches import CATALOGUE
from qlora_bf16_patch.patches.versions import FLOORS, TESTED

from . import page as written
from . import reference
from .held import complaints
from .processes import ROOT

RECORDS = written.records()


def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_page_is_what_the_records_say():
    assert written.PAGE.read_text() == written.page(), "python -m tests.versions --write"


def test_every_stack_has_a_record_and_every_record_a_stack():
    assert {file.stem for file in written.RECORDS.glob("*.json")} == {*written.STACKS, written.ENGINE.stem}
    assert [*RECORDS] == [*written.STACKS], "recorded in part"


def test_the_package_asks_for_its_floors():
    options = setup()["options"]
    asked = {one.name: str(one.specifier) for one in map(Requirement, options["install_requires"].split())}
    asked["python"] = options["python_requires"]
    assert asked == {name: f">={floor}" for name, floor in FLOORS.items() if name != "transformers"}


def test_the_readme_asks_for_the_floors_and_names_what_was_run():
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert written.ASKED_FOR in readme
    assert f"were run with {written.run_with()}: [versions]" in readme


def test_the_classifiers_name_the_pythons_that_were_recorded():
    classifiers = setup()["metadata"]["classifiers"]
    recorded = {record["python"].rpartition(".")[0] for record in RECORDS.values()}
    assert set(re.findall(r"Python :: (\d+\.\d+)$", classifiers, re.MULTILINE)) == recorded


@pytest.mark.parametrize("patch", CATALOGUE, ids=lambda patch: patch.name)
def test_a_patch_is_gated_by_the_floor_and_tested_with_the_newest_release_recorded(patch):
    assert patch.requires == f">={FLOORS[patch.distribution]}"
    assert patch.tested == TESTED[patch.distribution]
    assert Version(patch.tested) == max(Version(one["versions"][patch.distribution]) for one in RECORDS.values())


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_report_mended_no_new_failure_and_names_no_path_of_a_machine(name):
    record, text = RECORDS[name], (written.RECORDS / f"{name}.json").read_text()
    assert not re.search(r"/(work|tmp|root|home|opt|usr)/", text)
    assert record["stack"] == name
    assert "sweep" not in record or record["sweep"]["classes"]
    assert not [*complaints(record)]


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"status": [{"name": "a", "state": "failed", "reason": "b"}]}, "a is failed: b"),
        ({"failure": {"bf16 on": {"steps": 3, "generated": 2}}}, "the report with the shim"),
        ({"failure": {"bf16 off": {"steps": 3, "generated": 3}}}, "is none without"),
        ({"contracts": {"lora": {"error": "no module"}}}, "lora: no module"),
        ({"contracts": {"lora": {"what failed": [{"test": "t", "reason": "r"}]}}}, "t: r"),
        ({"sweep": {"error": "e"}}, "the sweep: e"),
        ({"sweep": {"classes": {"M": {"kbit": {"on": {"mismatch": 2}}}}, "wrong": {}}}, "M kbit: 2 mismatches"),
        ({"sweep": {"classes": {}, "wrong": {"M kbit: train": "bits"}}}, "M kbit: train: bits"),
    ],
)
def test_a_record_of_something_wrong_is_complained_of(part, complaint):
    (told,) = complaints({"versions": RECORDS["pinned"]["versions"]} | part)
    assert complaint in told


def test_the_oldest_torch_that_was_recorded_is_the_floor():
    oldest = min(Version(record["versions"]["torch"]) for record in RECORDS.values())
    assert oldest.release[:2] == Version(FLOORS["torch"]).release


def test_the_engine_holds_with_every_wrapt_from_the_floor_on_and_with_no_older_one():
    rows = json.loads(written.ENGINE.read_text())
    assert {row["python"].rpartition(".")[0] for row in rows} == {"3.10", "3.11", "3.12", "3.13"}
    assert {row["extension"] for row in rows} == {True, False}
    for row in rows:
        assert (row["failed"] == 0) == (Version(row["wrapt"]) >= Version(FLOORS["wrapt"]))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_reference_of_old_operators_computes_as_bitsandbytes_own(kind, storage, nested):
    old = types.SimpleNamespace(**vars(functional))
    reference._functions(old)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    options = {"compress_statistics": nested, "quant_type": kind, "quant_storage": storage}
    packed, state = old.quantize_4bit(weight, **options)
    theirs, their_state = functional.quantize_4bit(weight, **options)
    if kind == "nf4":  # FP4's own thresholds are no means of two levels
        assert torch.equal(packed.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(state.absmax, their_state.absmax)
    expected = functional.dequantize_4bit(theirs, their_state)
    assert torch.equal(old.dequantize_4bit(theirs, state), expected)
    assert torch.equal(old.dequantize_4bit(theirs.t(), state), expected.t())
    token = torch.randn(1, 128, dtype=torch.bfloat16)
    assert torch.equal(old.gemv_4bit(token, theirs, state=state), torch.nn.functional.linear(token, expected))
