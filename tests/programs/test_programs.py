"""The page of programs says what the records do, and the records what was promised."""

import os
import re
import subprocess
import sys

import pytest
import tomllib

from tests.versions.processes import ROOT
from toys.layers import MISMATCH

from . import page as written
from .record import HERE, SIDES, SWITCHED_ON, outcome
from .settings import PROGRAMS

RECORDS = written.records()
SETTINGS = [
    pytest.param(name, setting, id=f"{name}: {setting}") for name in RECORDS for setting in RECORDS[name]["settings"]
]
REFERENCES = [
    pytest.param(name, setting, id=f"{name}: {setting}")
    for name, record in RECORDS.items()
    for setting, found in record["settings"].items()
    if found.get("reference", {}).get("outcome") == "done"
]
PURE = "sft, 4 bits, pure_bf16"


def test_the_page_is_what_the_records_say():
    assert written.PAGE.read_text() == written.page(), "python -m tests.programs --write"


def test_every_program_is_installed_recorded_in_all_its_settings_and_told_how_to_switch_on():
    installed = tomllib.loads((HERE / "programs.toml").read_text())
    del installed["defaults"]
    assert {*installed} == {*PROGRAMS} == {*written.SWITCHED_ON}
    assert {file.stem for file in written.RECORDS.glob("*.json")} == {*PROGRAMS}
    assert {name: [*record["settings"]] for name, record in RECORDS.items()} == {
        name: [*settings] for name, settings in PROGRAMS.items()
    }


@pytest.mark.parametrize(("program", "setting"), SETTINGS)
def test_a_record_is_of_the_command_that_is_run_today(program, setting):
    found, today = RECORDS[program]["settings"][setting], PROGRAMS[program][setting]
    assert found["command"] == " ".join(today.command).replace(f"{ROOT}/", "")
    assert found.get("files", {}) == today.files


@pytest.mark.parametrize(("program", "setting"), SETTINGS)
def test_the_shim_does_no_harm_and_leaves_no_mismatch(program, setting):
    found = RECORDS[program]["settings"][setting]
    off, on = found["off"]["outcome"], found["on"]["outcome"]
    assert not MISMATCH.search(on)
    assert on in ("done", off)
    if MISMATCH.search(off):
        assert on == "done"


@pytest.mark.parametrize(("program", "setting"), SETTINGS)
def test_training_has_the_bits_that_it_has_without(program, setting):
    found = RECORDS[program]["settings"][setting]
    off, on = (found[side].get("losses", []) for side in ("off", "on"))
    assert len(on) >= len(off)
    assert on[: len(off)] == off
    off, on = (written.gradients(found[side]) for side in ("off", "on"))
    assert on[: len(off)] == off


@pytest.mark.parametrize(("program", "setting"), REFERENCES)
def test_training_goes_on_after_generation_as_it_does_under_autocast(program, setting):
    found = RECORDS[program]["settings"][setting]
    on, reference = found["on"], found["reference"]
    # GRPO learns from what it generated.
    if not setting.startswith("grpo") or written.answers(on) == written.answers(reference):
        assert on.get("losses") == reference.get("losses")
        assert written.gradients(on) == written.gradients(reference)


@pytest.mark.parametrize(("program", "setting"), REFERENCES)
def test_as_many_texts_are_generated_with_the_shim_as_under_autocast(program, setting):
    found = RECORDS[program]["settings"][setting]
    off, on, reference = found["off"], found["on"], found["reference"]
    assert len(written.answers(on)) == len(written.answers(reference)) > 0
    assert all(one["under autocast"] for one in reference["generated"])
    assert {one["under autocast"] for one in on["generated"]} == {one["under autocast"] for one in off["generated"]}


def test_every_program_generates():
    assert {param.values[0] for param in REFERENCES} == {*PROGRAMS}


@pytest.mark.parametrize("bits", [4, 8])
def test_llamafactory_fails_at_its_first_evaluation_and_runs_with_the_shim(bits):
    found = RECORDS["llamafactory"]["settings"][f"sft, {bits} bits"]
    off, on = found["off"], found["on"]
    assert MISMATCH.search(off["outcome"])
    assert [one.keys() for one in off["generated"]] == [{"under autocast", "error"}]
    assert len(off["losses"]) == 2
    assert (on["outcome"], len(on["losses"])) == ("done", 4)
    assert "lm_head" in written.casts(on)


def test_llamafactory_in_pure_bf16_asks_for_a_gpu_and_fails_in_its_first_step_without_the_shim():
    settings = RECORDS["llamafactory"]["settings"]
    assert "does not support `pure_bf16`" in settings[PURE]["off"]["outcome"]
    told = settings[f"{PURE}, told that the CPU computes in bf16"]
    assert MISMATCH.search(told["off"]["outcome"])
    assert not told["off"].get("losses")
    assert (told["on"]["outcome"], len(told["on"]["losses"])) == ("done", 4)


@pytest.mark.parametrize("program", RECORDS)
def test_a_record_names_no_path_of_a_machine(program):
    text = (written.RECORDS / f"{program}.json").read_text()
    assert not re.search(r"/(work|tmp|root|home|opt|usr)/", text)


def test_the_folder_of_the_page_imports_the_shim_at_each_start_and_no_torch():
    (line,) = (SWITCHED_ON / "sitecustomize.py").read_text().splitlines()
    assert line.partition("  #")[0] == "import qlora_bf16_patch"
    assert f"echo '{line.partition('  #')[0]}'" in written.INTRODUCTION
    code = "import sys; print([name in sys.modules for name in ('qlora_bf16_patch', 'torch')])"
    for side, expected in (("on", "[True, False]\n"), ("off", "[False, False]\n")):
        path = os.pathsep.join(filter(None, [SIDES[side].get("PYTHONPATH"), str(ROOT)]))
        environ = os.environ | SIDES[side] | {"PYTHONPATH": path}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=60)
        assert (result.stdout, result.returncode) == (expected, 0), result.stderr


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["RuntimeError: theirs", "subprocess.CalledProcessError: Command died"], "RuntimeError: theirs"),
        (["KeyError: 1", "", "ValueError: the last"], "ValueError: the last"),
        (["usage: program", "program: error: unknown"], "program: error: unknown"),
        ([], "no output"),
    ],
    ids=["a launcher", "a chain", "usage", "nothing"],
)
def test_an_outcome_is_the_programs_own_last_error(lines, expected):
    assert outcome(subprocess.CompletedProcess([], 1, "", "\n".join(lines))) == {"outcome": expected}
    assert outcome(subprocess.CompletedProcess([], 0, "", "\n".join(lines))) == {"outcome": "done"}
