"""``qlora-bf16-patch doctor``, in processes of its own."""

import json
import os

import pytest

import qlora_bf16_patch
from qlora_bf16_patch.doctor.child import observed
from qlora_bf16_patch.doctor.text import text
from qlora_bf16_patch.doctor.verdict import problems
from qlora_bf16_patch.patches import CATALOGUE

from ..starting import BROKEN, python

CRASHES = "import os, signal, sys; print('the last word', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)"


def doctor(*arguments, **options):
    return python("-m", "qlora_bf16_patch", "doctor", *arguments, **options)


def as_json(*arguments, **options):
    result = doctor("--json", *arguments, **options)
    found = json.loads(result.stdout)
    assert result.returncode == (0 if found["works"] else 1), result.stderr
    assert found["works"] == (not found["problems"])
    return found


def broken(tmp_path, library, text):
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    found = as_json(TMPDIR=str(folder))
    assert not os.listdir(folder)
    return found


def test_where_all_is_well_it_says_so_with_the_reported_failure_off_and_on(healthy):
    assert healthy["problems"] == healthy["failures"] == healthy["strangers"] == healthy["clashes"] == []
    names = [patch.name for patch in CATALOGUE]
    assert [row["name"] for row in healthy["patches"]] == names == list(healthy["needed"])
    assert healthy["selftest"]["off"]["of_dtypes"]
    assert "to have the same dtype, but got: float != c10::BFloat16" in healthy["selftest"]["off"]["error"]
    assert len(healthy["selftest"]["on"]["tokens"]) == 4
    assert healthy["machine"]["environment"] == {}


def test_the_text_has_all_of_it(healthy):
    shown = text(healthy)
    assert shown.startswith(f"qlora-bf16-patch {qlora_bf16_patch.__version__} works here.\n")
    told = " ".join(shown.split())
    for patch in CATALOGUE:
        assert f" {patch.name}: " in told
    for words in (
        "environment: no QLORA_BF16_PATCH variable",
        "itself; only with this patch it leaves the bias as it is",
        "others' patches none seen",
        "known clashes of these releases none",
        "without the shim: RuntimeError: expected m",
        "with it, as it is switched here: generated the tokens",
    ):
        assert words in told, words


def test_the_kill_switch_is_told_and_the_reported_failure_stays():
    result = doctor(QLORA_BF16_PATCH="off")
    assert result.returncode == 1
    told = " ".join(result.stdout.split())
    assert "does not work here: - every patch is switched off, by environment (QLORA_BF16_PATCH)" in told
    assert "QLORA_BF16_PATCH='off'" in told
    assert "the reported failure is not mended with the shim as it is switched here: RuntimeError" in told


def test_a_patch_that_was_switched_off_is_a_problem_where_the_failure_is_not_mended():
    found = as_json(QLORA_BF16_PATCH_DISABLE="peft.tuners, peft.boundary")
    (told,) = found["problems"]
    assert told.startswith("the reported failure is not mended with the shim as it is switched here: RuntimeError")
    found["selftest"]["on"] = {"tokens": [1]}
    assert problems(found) == []


def test_a_broken_library_is_a_reason(tmp_path):
    prints = "print('hello', end='', flush=True)"
    (tmp_path / "sitecustomize.py").write_text("import sys\nif '-c' in sys.orig_argv:\n    print('hello')")
    found = as_json(path=broken(tmp_path, "bitsandbytes", f"{prints}\n{BROKEN}"))
    assert any(
        "bitsandbytes.linear4bit is failed: bitsandbytes.nn.modules cannot" in told for told in found["problems"]
    )
    assert any(told.startswith("selftest: OSError: libbitsandbytes.so") for told in found["failures"])
    assert "libbitsandbytes.so" in found["needed"]["bitsandbytes.linear4bit"]["sentence"]
    assert found["machine"]["torch"]["version"]


def test_a_library_that_crashes_is_a_reason_and_not_doctors_end(tmp_path):
    result = doctor(path=broken(tmp_path, "bitsandbytes", CRASHES))
    assert result.returncode == 1
    told = " ".join(result.stdout.split())
    assert "patches: the process that tries it was ended by SIGSEGV: the last word" in told
    assert "switched off" not in told


def test_a_process_that_takes_too_long_is_ended():
    stages = []
    found = observed(stages.append, limit=0.01)
    (failure,) = found["failures"]
    assert "was ended by SIGKILL (the limit is 0 s)" in failure


def test_a_programs_output_is_no_part_of_the_json(tmp_path):
    file = tmp_path / "program.py"
    file.write_text("import torch; print('hello')")
    result = doctor("--json", str(file), "--json")
    found = json.loads(result.stdout)
    assert "hello" in result.stderr
    assert found["program"]["command"] == [str(file), "--json"]
    assert found["program"]["status"] == 0
    assert result.returncode == 1
    assert "no k-bit model was seen" in found["problems"][0]


def test_a_program_that_does_not_exist_is_told():
    result = doctor("nowhere.py")
    assert (result.returncode, result.stdout) == (127, "")
    assert "there is no file 'nowhere.py'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
