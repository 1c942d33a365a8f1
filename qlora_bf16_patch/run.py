"""``qlora-bf16-patch run PROGRAM ...``: an unmodified program, and every Python that it starts, with the shim on.

This process becomes the program (``exec``), so its arguments, exit status, signals and streams are its own. The folder
``bootstrap`` stands on ``PYTHONPATH`` meanwhile, and nothing is written but the trace that is asked for.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from . import _known, at_end, trace_file
from .bootstrap import _qlora_bf16_patch_children as children
from .engine.environment import MAIN, Environment
from .patches import MOVED

NOT_FOUND = 127  # as of a shell
# Set for the program's processes alone: no variables of a user's.
QUIET, TRACE = "_QLORA_BF16_PATCH_QUIET", "_QLORA_BF16_PATCH_TRACE"
REPORTS = "_QLORA_BF16_PATCH_REPORTS"  # a folder that `doctor PROGRAM` collects from
IGNORED = ("SIGPIPE", "SIGXFSZ")  # by Python (Python/pylifecycle.c); a program that is no Python would inherit it


class ProgramNotFoundError(ValueError):
    """There is no such program."""


def run(program: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Become ``program``, with the shim on; it does not return.

    Args:
        program: ``train.py ...``, ``-m module ...``, or a command and its arguments.
        environ: the environment that it gets, with the variables of :func:`variables`.

    Raises:
        ProgramNotFoundError: there is no such file, and no such command on ``PATH`` or beside this Python.
        EnvironmentVariableError: a patch or a value in ``environ`` is not known.
        TraceFileError: there is to be a trace, and it cannot be written.
    """
    command = prepared(program, environ)
    if TRACE in environ:
        environ[TRACE] = trace_file.prepared(environ[TRACE])
    children.watch("os.exec", (command[0], command, environ))
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed before the start
        stream.flush()
    os.execve(command[0], command, dict(environ))


def prepared(program: Sequence[str], environ: MutableMapping[str, str]) -> list[str]:
    """The command that is executed, and ``environ`` made such that it has the shim on. Errors as of :func:`run`."""
    command = command_of(program)
    Environment(environ, _known, MOVED)
    entries = [children.HERE, *filter(None, [environ.get("PYTHONPATH")])]
    environ["PYTHONPATH"] = os.pathsep.join(entries)
    return command


def command_of(program: Sequence[str]) -> list[str]:
    """What is executed, by its path."""
    first = program[0]
    if first == "-m":
        return [sys.executable, *program]
    is_script = first.endswith((".py", ".pyz"))
    beside = str(Path(sys.executable).parent)
    found = None if is_script else shutil.which(first) or shutil.which(first, path=beside)
    if found is not None:
        return [found, *program[1:]]
    if Path(first).exists():  # a folder only here: who runs `lm_eval` in a clone of it means the command
        return [sys.executable, *program]
    if is_script:
        raise ProgramNotFoundError(f"there is no file {first!r} in {Path.cwd()}")
    raise ProgramNotFoundError(f"there is no command {first!r} on PATH, nor beside {sys.executable}")


def variables(
    environ: MutableMapping[str, str],
    enable: Sequence[str] = (),
    disable: Sequence[str] = (),
    strict: bool = False,
    log: str | None = None,
    trace: str | None = None,
    quiet: bool = False,
) -> None:
    """Set what the options ask for, beside what is set already."""
    for suffix, names in (("ENABLE", enable), ("DISABLE", disable)):
        wanted = [*filter(None, [environ.get(f"{MAIN}_{suffix}")]), *names]
        if wanted:
            environ[f"{MAIN}_{suffix}"] = ",".join(wanted)
    if strict:
        environ[f"{MAIN}_STRICT"] = "1"
    if log:
        environ[f"{MAIN}_LOG"] = log
    if trace is not None:
        environ[TRACE] = trace
    if quiet:
        environ[QUIET] = "1"


def started() -> None:
    """Called in a process of the program, before its first library is imported."""
    at_end.tell(quiet=QUIET in os.environ)
    if TRACE in os.environ:
        at_end.trace(os.environ[TRACE])
    if os.environ.get(REPORTS):
        from .doctor import process

        process.started(os.environ[REPORTS])
