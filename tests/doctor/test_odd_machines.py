"""What doctor tells of machines, packages and programs that are not as this one."""

import sys
import types
from pathlib import Path

import pytest

from qlora_bf16_patch.doctor import clashes, machine, process, strangers
from qlora_bf16_patch.doctor.packages import packages
from qlora_bf16_patch.doctor.text import text
from qlora_bf16_patch.doctor.verdict import problems


def told(**report):
    """The report's text, on one line; a machine without problems unless it is given."""
    return " ".join(text({"version": "1", "works": True, "failures": [], **report}).split())


def test_where_there_is_no_proc_the_machines_name_is_told(monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", lambda path: Path("/nowhere/cpuinfo").open())
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    found = machine.machine()
    assert found["processor"] == {"name": "arm64", "bfloat16": []}
    assert "arm64" in told(machine=found)
    assert "no bfloat16 instructions" in told(machine=found)


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = machine.machine()
    assert found["gpus"] == []
    assert "torch cannot be imported: ModuleNotFoundError: import of torch halted" in told(machine=found)


@pytest.mark.parametrize(("major", "without"), [(7, True), (9, False)])
def test_a_gpu_is_told_with_whether_it_computes_in_bfloat16(monkeypatch, major, without):
    import torch

    card = types.SimpleNamespace(name="A card", major=major, minor=0, total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    shown = told(machine=machine.machine())
    assert f"GPU: A card, {major}.0, 16 GiB" in shown
    assert ("without bfloat16 of its own" in shown) == without


def test_what_an_old_package_asks_for_in_no_ones_grammar_is_left_out(tmp_path, monkeypatch):
    info = tmp_path / "train_all-1.0.dist-info"
    info.mkdir()
    asks = "Requires-Dist: peft (>>1\nRequires-Dist: peft>=99\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: train-all\nVersion: 1.0\n{asks}")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = (one for one in packages() if one["name"] == "train-all")
    assert len(found["unmet"]) == 1
    assert found["unmet"][0].startswith("asks for peft>=99, found ")


def test_a_release_that_cannot_be_compared_clashes_with_none():
    assert clashes.found({"wrapt": "1.14", "peft": "0.9"}, has_gpu=True)
    assert not clashes.found({"wrapt": "git-main", "peft": "a fork"}, has_gpu=True)


def test_a_library_that_is_not_installed_asks_for_nothing(monkeypatch):
    def requires(name):
        raise strangers.importlib.metadata.PackageNotFoundError(name)

    assert "numpy" in strangers._required({"torch", "transformers"})
    monkeypatch.setattr(strangers.importlib.metadata, "requires", requires)
    assert strangers._required({"torch", "transformers"}) == set()


def test_a_program_whose_doctor_has_gone_ends_as_ever(tmp_path):
    process._leave(str(tmp_path), {"ended": True})
    assert len(list(tmp_path.iterdir())) == 1
    process._leave(str(tmp_path / "gone"), {"ended": True})
    assert not (tmp_path / "gone").exists()


def test_a_self_test_that_fails_for_another_reason_is_a_problem_of_its_own():
    report = {"failures": [], "selftest": {"on": {"error": "OSError: no kernel", "of_dtypes": False}}}
    assert problems(report) == [
        "a 4-bit Llama does not generate here, for another reason than dtypes: OSError: no kernel"
    ]


@pytest.mark.parametrize("state", ["active", "off"])
def test_a_promise_that_does_not_hold_is_a_problem_where_its_patch_is_active(state):
    row = {"name": "a.patch", "state": state, "reason": "", "decided_by": "call"}
    other = {**row, "name": "another", "state": "active"}
    answer = {"promise": "computes in bfloat16", "itself": False, "patched": False, "error": ""}
    report = {"failures": [], "patches": [row, other], "needed": {"a.patch": {"answers": [answer]}}}
    wrong = ["a.patch is active, and yet it does not hold here that it computes in bfloat16: report it"]
    assert problems(report) == wrong * (state == "active")


def test_who_stands_in_a_programs_functions_is_told_with_its_process():
    one = {"pid": 1, "command": ["train"], "patches": [], "models": 1, "modules_cast": 0, "error": None}
    program = {"command": ["train"], "status": 0, "isolated": None}
    both = [one, {**one, "pid": 2, "strangers": ["unsloth stands in Linear"]}]
    shown = told(program={**program, "processes": both}, strangers=["somebody here"])
    assert "unsloth stands in Linear (process 2)" in shown
    assert "somebody here" not in shown
