"""Which commands will not have the shim on, asked without starting them: tests/test_run.py starts some.

Python switches tracing off inside of an audit hook, so what is asked there is counted here alone.
"""

import io
import os
import sys
import types

import pytest

from qlora_bf16_patch.bootstrap import _qlora_bf16_patch_children as children

ON = {"PYTHONPATH": children.HERE}
ISOLATED, ANOTHER = "runs isolated", "is started with another PYTHONPATH"


@pytest.mark.parametrize(
    ("command", "environ", "told"),
    [
        (["python", "train.py"], ON, None),
        ("python", ON, None),
        (b"python3.11", ON, None),
        (["python", "train.py"], {}, ANOTHER),
        (["python", "train.py"], {"PYTHONPATH": "/elsewhere"}, ANOTHER),
        (["python", "train.py"], {b"PYTHONPATH": os.fsencode(children.HERE)}, None),
        (["python", "-I", "train.py"], ON, ISOLATED),
        (["python", "-uE", "train.py"], ON, ISOLATED),
        (["python", "-W", "ignore", "-S"], ON, ISOLATED),
        (["python", "-WIES", "train.py"], ON, None),
        (["python", "-Xdev", "-I"], ON, ISOLATED),
        (["python", "--check-hash-based-pycs", "always", "-I"], ON, ISOLATED),
        (["python", "--version", "-I"], ON, ISOLATED),
        (["python", "-c", "pass", "-I"], ON, None),
        (["python", "-ucI"], ON, None),
        (["python", "-", "-I"], ON, None),
        (["nobody-has-this"], {}, None),
    ],
)
def test_a_command_is_told_where_it_will_not_have_the_shim_on(command, environ, told):
    found = children.why_not(None, command, environ)
    assert (told in found) if told else found is None


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("#!/usr/bin/python3 -I", ISOLATED),
        ("#!/usr/bin/env python3", None),
        ("#!/usr/bin/env -S python3 -I", ISOLATED),
        ("#!/bin/sh", None),
        ("no script", None),
    ],
)
def test_a_scripts_first_line_says_what_runs_it(tmp_path, monkeypatch, first, told):
    (tmp_path / "train").write_text(f"{first}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in ("train", str(tmp_path / "train")):  # by PATH, and by its own
        found = children.why_not(None, [command], ON)
        assert (told in found) if told else found is None


def audited(event, *arguments, caller="train"):
    """The hook, called as from a function of this module."""
    namespace = {"__name__": caller, "watch": children.watch, "arguments": (event, arguments)}
    exec("def call(): watch(*arguments)\ncall()", namespace)


@pytest.mark.parametrize(
    ("event", "arguments", "caller", "told"),
    [
        ("subprocess.Popen", (None, ["python", "-I"], None, ON), "train", ISOLATED),
        ("os.exec", (sys.executable, ["python", "-I"], ON), "train", ISOLATED),
        ("os.exec", (sys.executable, ["python", "-I"], ON), "subprocess", None),  # its Popen has told it
        ("os.posix_spawn", (sys.executable, ["python"], {}), "train", ANOTHER),
        ("os.exec", ("/nowhere/python", ["python", "-I"], ON), "train", None),  # os.execvp tries each folder of PATH
        ("open", ("a file", "r", 0), "train", None),
        ("open", ("/dev/null", "r", 0), "multiprocessing.popen_spawn_posix", ANOTHER),
        ("subprocess.Popen", ("too", "few"), "train", None),
        ("import", (), "train", None),
    ],
)
def test_what_is_audited_is_told_once_and_nothing_raises(monkeypatch, capsys, event, arguments, caller, told):
    spawn = types.SimpleNamespace(get_executable=lambda: sys.executable)
    monkeypatch.setitem(sys.modules, "multiprocessing.spawn", spawn)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    audited(event, *arguments, caller=caller)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(told)
    assert not told or (told in lines[0] and lines[0].startswith(f"qlora-bf16-patch: process {os.getpid()}: "))


def test_a_stream_that_is_closed_is_not_written_to(monkeypatch):
    closed = io.StringIO()
    closed.close()
    children.tell("text", closed)
    monkeypatch.setattr(sys, "stderr", None)
    children.tell("text")
    children.tell("text", still := io.StringIO())
    assert still.getvalue() == f"qlora-bf16-patch: process {os.getpid()}: text\n"
