"""``doctor PROGRAM``: what a program's processes leave, and what is made of it."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap

import pytest

from qlora_bf16_patch.doctor import program_text
from qlora_bf16_patch.doctor.program import watched
from qlora_bf16_patch.doctor.verdict import problems
from qlora_bf16_patch.run import ProgramNotFoundError

MODEL = """
import torch
from torch import nn
from qlora_bf16_patch.defects.toys import SIZE, hidden_states, lora

head = nn.Linear(SIZE, 8, bias=False, dtype=torch.bfloat16)
model = lora(4, head)
with torch.no_grad():
    model(hidden_states())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script, and hold that nothing is left of it on the disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def start(text, *arguments):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(text))
        found = watched([str(file), *arguments], dict(os.environ), subprocess.DEVNULL)
        assert not os.listdir(tmp_path / "temporary")
        return found

    return start


def wrong(program):
    return problems({"failures": [], "program": program})


def test_a_program_in_which_a_model_was_mended_works(run):
    program = run(MODEL)
    assert wrong(program) == []
    (process,) = program["processes"]
    assert (process["models"], process["modules_cast"], process["error"]) == (1, 1, None)
    assert {row["state"] for row in process["patches"]} == {"active", "off"}
    text = "\n".join(program_text.lines(program, {}))
    assert "ended with status 0" in text
    assert "6 patches active; 1 k-bit model; casts in 1 module" in text
    assert "casts at 1 place: behind" in text
    assert "other libraries" not in text
    other = "\n".join(program_text.lines(program, {"peft": "0.6.0"}))
    assert "has other libraries than doctor: peft 0." in other


def test_its_children_are_told_as_well_and_one_with_a_model_is_enough(run):
    program = run(f"import subprocess, sys, torch; subprocess.run([sys.executable, '-c', {MODEL!r}], check=True)")
    assert sorted(one["models"] for one in program["processes"]) == [0, 1]
    assert wrong(program) == []
    states = program_text.states(program)
    assert "(process" not in states["transformers.generate"]  # the same in both
    assert states["peft.boundary"].count("(process ") == 2


def test_arguments_and_exit_status_are_its_own(run):
    program = run("import sys; sys.exit(len(sys.argv))", "a", "--json")
    assert program["status"] == 3


def test_an_error_of_dtypes_that_ended_it_is_a_problem(run):
    (told,) = wrong(run(MODEL.replace("lora(4, head)", "nn.Sequential(lora(4), head)")))
    assert "RuntimeError: expected m" in told
    assert "guard(module)" in told


def test_another_error_is_the_programs_own(run):
    program = run(MODEL + "\nraise ValueError('no data')")
    assert (program["status"], wrong(program)) == (1, [])
    assert "  ended by ValueError: no data" in program_text.lines(program, {})


def test_a_patch_that_somebody_has_replaced_is_a_problem_and_says_how_to_get_it_back(run):
    program = run(MODEL + "\nimport bitsandbytes\nbitsandbytes.nn.Linear4bit.forward = lambda self, x: x")
    (told,) = wrong(program)
    assert "bitsandbytes.linear4bit is shadowed" in told
    assert "enable('bitsandbytes.linear4bit') patches what is there now" in told
    assert program_text.strangers(program)[0].startswith(
        "__main__ stands in bitsandbytes.nn.modules.Linear4bit.forward"
    )


def test_a_program_without_a_kbit_model_is_told(run):
    (told,) = wrong(run("import torch"))
    assert "no k-bit model was seen in the one process of the program" in told


def test_a_program_that_imports_no_library_is_told(run):
    program = run("")
    assert program["processes"] == []
    (told,) = wrong(program)
    assert "is it the program that trains?" in told


def test_a_program_that_is_isolated_is_told(tmp_path):
    (told,) = wrong(watched([sys.executable, "-I", "-c", ""], dict(os.environ)))
    assert "runs isolated: the shim is not on in it" in told


def test_a_signal_is_the_programs_own(tmp_path):
    ends = "import os, signal, time, torch; os.kill(os.getppid(), signal.SIGTERM); time.sleep(100)"
    starts = f"""
import os, sys
from qlora_bf16_patch.doctor.program import watched
print(watched([sys.executable, "-c", {ends!r}], dict(os.environ))["status"])
"""
    result = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, timeout=90)
    assert (result.stdout, result.returncode) == (f"{-signal.SIGTERM}\n", 0)


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_does_not_come_to_its_end_is_told_by_what_it_left_at_its_start(run, end):
    program = run(f"import os, signal, torch; {end}")
    (process,) = program["processes"]
    assert not process["ended"]
    assert any("before it could tell" in line for line in program_text.lines(program, {}))
    assert program["status"] in (0, -signal.SIGKILL)


def test_what_goes_wrong_at_the_end_is_told_and_not_the_programs_business(run):
    program = run(
        """
        import torch, qlora_bf16_patch.doctor.process as process
        process._found = lambda: 1 / 0
        """
    )
    assert program["status"] == 0
    assert any("could not tell what was done: ZeroDivisionError" in sentence for sentence in wrong(program))


def test_a_program_that_does_not_exist_is_an_error():
    with pytest.raises(ProgramNotFoundError, match="no file 'nowhere"):
        watched(["nowhere.py"], dict(os.environ))
