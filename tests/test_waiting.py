"""The line that a command shows while it works: on a terminal, on stderr, and nowhere else."""

import os
import pty
import subprocess
import sys

STEPS = """
from qlora_bf16_patch.commands.waiting import waiting
with waiting(2) as step:
    step("importing peft")
    step("asking [peft]")
    print("printed")
"""
NO_RICH = "import sys; sys.modules['rich.console'] = None\n"


def on_a_terminal(*arguments, **environ):
    """What a Python prints on stdout, and on a stderr that is a terminal."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "HF_HUB_OFFLINE": "1", **environ}
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environ) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 1024):
                seen += part
        except OSError:  # Linux says so that the other end is closed
            pass
        stdout = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0, seen
    return stdout, seen.decode()


def test_a_terminal_shows_what_is_done_and_the_line_goes():
    stdout, stderr = on_a_terminal("-c", STEPS)
    assert stdout == "printed\n"
    assert "1/2" in stderr
    assert "-1/2" not in stderr
    assert "asking [peft]" in stderr
    assert stderr.endswith("\x1b[2K")  # the line is erased


def test_a_pipe_shows_nothing():
    environ = {**os.environ, "FORCE_COLOR": "1"}
    result = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, env=environ, timeout=300)
    assert (result.stdout, result.stderr) == ("printed\n", "")


def test_without_rich_nothing_is_shown():
    assert on_a_terminal("-c", NO_RICH + STEPS) == ("printed\n", "")


def test_the_status_says_which_library_it_waits_for():
    stdout, stderr = on_a_terminal("-m", "qlora_bf16_patch", "status", "--json")
    assert stdout.startswith("[")
    assert "importing peft" in stderr
