"""``qlora-bf16-patch report FILE``."""

import subprocess
import sys

import pytest
import torch

import qlora_bf16_patch
from qlora_bf16_patch.commands import main
from toys.models import lora_model

LINE = "base_model.model.head: linear has its input cast from float32 to bfloat16 by peft.boundary, once in 1 module"


@pytest.fixture
def trace(tmp_path):
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        model(torch.randn(2, 64))
    trace.to_json(tmp_path / "trace.json")
    return trace


@pytest.fixture
def report(tmp_path):
    model = lora_model()
    model.get_base_model().proj.lora_B["default"].to(torch.bfloat16)
    report = qlora_bf16_patch.report(model)
    report.to_json(tmp_path / "report.json")
    return report


@pytest.mark.parametrize("name", ["trace", "report"])
def test_a_file_is_shown_as_it_was_written(request, tmp_path, capsys, name):
    written = request.getfixturevalue(name)
    assert main(["report", str(tmp_path / f"{name}.json")]) == 0
    assert capsys.readouterr().out == f"{written}\n"


@pytest.mark.parametrize("name", ["trace", "report"])
def test_a_terminal_shows_borders_where_no_column_is_folded(request, tmp_path, capsys, monkeypatch, name):
    written = request.getfixturevalue(name)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns, bordered in (("300", True), ("80", False)):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["report", str(tmp_path / f"{name}.json")]) == 0
        out = capsys.readouterr().out
        assert ("┏" in out, out == f"{written}\n") == (bordered, not bordered)


def test_the_mismatches_of_a_trace_alone(trace, tmp_path, capsys):
    assert main(["report", str(tmp_path / "trace.json"), "--mismatches"]) == 0
    assert capsys.readouterr().out == f"evaluation: {LINE}\n"


def test_the_mismatches_of_a_report_alone(report, tmp_path, capsys):
    assert main(["report", "--mismatches", str(tmp_path / "report.json")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "mismatch",
        "  base_model.model.proj.lora_B.default (Linear)",
        "  Advice",
    ]


def test_none_is_told(tmp_path, capsys):
    qlora_bf16_patch.report(lora_model()).to_json(tmp_path / "report.json")
    assert main(["report", "--mismatches", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out == "No mismatch.\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"{not json", "neither a trace nor a report: it is no JSON (Expecting property name"),
        (b"<!doctype html>", "Trace.to_json, Report.to_json and `qlora-bf16-patch run --trace` write one."),
        (b"[1]", "it has no format"),
        (b'{"format": "another 3"}', "its format is 'another 3'"),
        (b'{"format": ["qlora"]}', "its format is ['qlora']"),
        (b'{"format": "qlora_bf16_patch trace 1"}', "is no trace: KeyError: 'ran'"),
        (b'{"format": "qlora_bf16_patch report 1", "model": "Toy"}', "is no report: KeyError: 'program'"),
        (b"\xff\xfe\x00", "neither a trace nor a report"),
    ],
)
def test_what_is_no_trace_is_told_and_fails(tmp_path, capsys, content, told):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_bytes(content)
    assert main(["report", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qlora-bf16-patch report: ")
    assert told in error
    assert "other.json" in error
    assert "Traceback" not in error


def test_a_folder_is_told_and_fails(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["trace", "report"])
def test_a_page_is_written(request, tmp_path, capsys, name):
    written, page = request.getfixturevalue(name), tmp_path / "page.html"
    assert main(["report", str(tmp_path / f"{name}.json"), "--html", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == written.to_html() and capsys.readouterr().out == ""


def test_a_page_never_overwrites_what_it_is_made_of(trace, tmp_path, capsys):
    file = tmp_path / "trace.json"
    text = file.read_text()
    assert main(["report", str(file), "--html", str(tmp_path / "." / "trace.json")]) == 2
    assert file.read_text() == text
    assert "would overwrite FILE: name another file" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told(trace, tmp_path, capsys):
    assert main(["report", str(tmp_path / "trace.json"), "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(trace, tmp_path):
    command = [sys.executable, "-m", "qlora_bf16_patch", "report", str(tmp_path / "trace.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
