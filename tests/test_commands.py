"""What commands do in odd surroundings, in this process: tests/test_cli.py and test_run.py start them."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

import qlora_bf16_patch
from qlora_bf16_patch import at_end, trace_file
from qlora_bf16_patch.commands import parser, run, status
from qlora_bf16_patch.engine.patch import Status
from qlora_bf16_patch.engine.statuses import Statuses
from qlora_bf16_patch.run import variables
from toys.models import Toy

ROW = {"name": "a.patch", "state": "active", "reason": "on", "decided_by": "default", "version": "1", "summary": ""}


def test_on_a_terminal_the_status_is_a_table_with_the_notes_beneath_it(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, width=60, force_terminal=True, no_color=True, color_system=None)
    monkeypatch.setattr(status, "console", lambda: terminal)
    note = "a note with [brackets] that is longer than the terminal is wide, and is not folded"
    status._table(Statuses([Status(**ROW, notes=(note,))]))
    assert "┃ name    ┃ state  ┃ reason ┃ decided_by ┃ version ┃" in shown.getvalue()
    assert "│ a.patch │ active │ on     │ default    │ 1       │" in shown.getvalue()
    assert shown.getvalue().endswith(f"a.patch: {note}\n")


def test_two_dashes_end_the_options_of_run():
    options = parser().parse_args(["run", "--quiet", "--", "--odd.py", "--strict"])
    assert (options.quiet, options.strict, options.program) == (True, False, ["--odd.py", "--strict"])


@pytest.mark.parametrize("killed", [True, False])
def test_under_the_kill_switch_no_name_is_looked_up(monkeypatch, capsys, killed):
    monkeypatch.setenv("QLORA_BF16_PATCH", str(int(not killed)))
    if killed:
        assert run._patches("no.such_patch") == "no.such_patch"
    else:
        with pytest.raises(run.argparse.ArgumentTypeError, match="is not known"):
            run._patches("no.such_patch")


@pytest.mark.parametrize("strict", [True, False])
def test_strict_is_handed_on_by_the_environment(strict):
    environ = {}
    variables(environ, strict=strict)
    assert environ == ({"QLORA_BF16_PATCH_STRICT": "1"} if strict else {})


def test_under_the_kill_switch_guard_gives_the_model_back_as_it_is(monkeypatch):
    model = Toy()
    before = [dict(vars(module)) for module in model.modules()]
    monkeypatch.setattr(qlora_bf16_patch._environment, "killed", True)
    assert qlora_bf16_patch.guard(model) is model
    assert [vars(module) for module in model.modules()] == before


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_program_starts(tmp_path, monkeypatch):
    trace_file.prepared(str(tmp_path / "trace.json"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(trace_file.TraceFileError, match="cannot be written to"):
        trace_file.prepared(str(tmp_path / "trace.json"))


def test_a_trace_that_cannot_be_written_leaves_the_last_one_and_no_part(tmp_path, monkeypatch):
    found = trace_file.TraceFile(str(tmp_path / "trace.json"))
    found.write("one")
    with monkeypatch.context() as full:
        full.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        found.write("two")
    assert found.problem == "no space left"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"trace.json": "one"}
    found.write("three")
    assert (found.problem, Path(found.written).read_text()) == (None, "three")


def test_a_process_whose_number_was_anothers_takes_that_ones_file(tmp_path):
    own = tmp_path / f"trace.{os.getpid()}.json"
    for file in (tmp_path / "trace.json", own):
        file.write_text("another's")
    found = trace_file.TraceFile(str(tmp_path / "trace.json"))
    found.write("mine")
    assert (found.written, own.read_text(), (tmp_path / "trace.json").read_text()) == (str(own), "mine", "another's")


@pytest.fixture
def traced(tmp_path):
    return at_end._Traced(str(tmp_path / "trace.json"))


def test_a_trace_that_cannot_begin_is_told_and_the_programs_import_goes_on(traced, monkeypatch):
    monkeypatch.setattr("qlora_bf16_patch.inspection.program.ProgramTrace", lambda written: 1 / 0)
    assert traced.start(None, True)
    assert traced.ended() == ([], ["the trace is not whole: ZeroDivisionError: division by zero"])


def test_a_trace_that_cannot_be_put_together_is_told(traced):
    class Program:
        failure = "KeyError: 'a module'"

        def result(self):
            raise RuntimeError("no order")

    traced.program = Program()
    wrong = ["the trace is not whole: RuntimeError: no order", "the trace is not whole: KeyError: 'a module'"]
    assert traced.ended() == ([], wrong)


def test_a_trace_is_told_by_its_whole_path_where_the_programs_folder_is_gone(tmp_path, monkeypatch):
    file = str(tmp_path / "trace.json")
    monkeypatch.chdir(tmp_path)
    assert at_end._as_seen_from_here(file) == "trace.json"
    monkeypatch.setattr(os, "getcwd", lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert at_end._as_seen_from_here(file) == file


def test_a_process_tells_once(monkeypatch, capfd):
    monkeypatch.setattr(at_end, "_told_in", 0)
    monkeypatch.setattr(at_end.sys, "__stderr__", at_end.sys.stderr)
    for _ in range(2):  # by multiprocessing's finalizer and by atexit
        at_end._tell()
    assert capfd.readouterr().err.count("qlora-bf16-patch: process") == 1
