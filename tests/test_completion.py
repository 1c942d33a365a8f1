"""Shells complete the command line where argcomplete is installed; without it nothing happens."""

import os
import subprocess
import sys

import pytest

from qlora_bf16_patch.patches import CATALOGUE

NO_ARGCOMPLETE = (
    "import sys; sys.modules['argcomplete'] = None; from qlora_bf16_patch.commands import main; main(['run'])"
)


def completions(line, folder):
    shell = f"{sys.executable} -m qlora_bf16_patch 8>&1 9>/dev/null 1>/dev/null"
    environ = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=environ, cwd=folder, timeout=300)
    return {answer.strip() for answer in result.stdout.split("\n")} - {""}


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("qlora-bf16-patch sta", {"status"}),
        ("qlora-bf16-patch run --dis", {"--disable"}),
        ("qlora-bf16-patch run --enable peft.bou", {"peft.boundary"}),
        ("qlora-bf16-patch run --strict --disable ", {patch.name for patch in CATALOGUE}),
        ("qlora-bf16-patch run --log ", {"debug", "info", "warning"}),
        ("qlora-bf16-patch run --trace t", {"train.py"}),
        ("qlora-bf16-patch run train.py --dis", set()),
    ],
)
def test_the_command_line_is_completed(line, answers, tmp_path):
    (tmp_path / "train.py").touch()
    assert completions(line, tmp_path) == answers


def test_without_argcomplete_the_command_line_is_what_it_was():
    environ = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": "qlora-bf16-patch ", "COMP_POINT": "17"}
    result = subprocess.run(
        [sys.executable, "-c", NO_ARGCOMPLETE], capture_output=True, text=True, env=environ, timeout=300
    )
    assert result.returncode == 2
    assert "which program?" in result.stderr
