"""``qlora-bf16-patch run PROGRAM ...``: an unmodified program, and every Python that it starts, with the shim on.

This process becomes the program (``exec``), so its arguments, exit status, signals and streams are its own. The folder
``bootstrap`` stands on ``PYTHONPATH`` meanwhile, and nothing is written anywhere.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from .engine.environment import MAIN, Environment
from .patches import CATALOGUE, MOVED

BOOTSTRAP = str(Path(__file__).parent / "bootstrap")
NOT_FOUND = 127  # as of a shell


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
    """
    command = command_of(program)
    Environment(environ, [patch.name for patch in CATALOGUE], MOVED)
    entries = [BOOTSTRAP, *filter(None, [environ.get("PYTHONPATH")])]
    environ["PYTHONPATH"] = os.pathsep.join(entries)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, dict(environ))


def command_of(program: Sequence[str]) -> list[str]:
    """What is executed, by its path."""
    first = program[0]
    if first == "-m":
        return [sys.executable, *program]
    if first.endswith((".py", ".pyz")) or Path(first).is_dir():
        if not Path(first).exists():
            raise ProgramNotFoundError(f"there is no file {first!r} in {Path.cwd()}")
        return [sys.executable, *program]
    beside = str(Path(sys.executable).parent)
    found = shutil.which(first) or shutil.which(first, path=beside)
    if found is None:
        raise ProgramNotFoundError(f"there is no command {first!r} on PATH, nor beside {sys.executable}")
    return [found, *program[1:]]


def variables(
    environ: MutableMapping[str, str], enable: Sequence[str], disable: Sequence[str], strict: bool, log: str | None
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


def started() -> None:
    """Called in a process of the program, before its first library is imported."""
    atexit.register(_tell)


def _tell() -> None:
    """One line at the end: what was patched, and how many modules were cast."""
    try:
        sys.stderr.write(f"qlora-bf16-patch: process {os.getpid()}: {summary()}\n")
    except (OSError, ValueError):  # the program has closed it
        return


def summary() -> str:
    """What the shim did in this process."""
    from . import status

    rows = status()
    failed = [f"{row.name} is {row.state}: {row.reason}" for row in rows if row.state in ("failed", "shadowed")]
    training = sys.modules.get("qlora_bf16_patch.numerics.training")
    models = training.taken_in() if training else 0
    if not models:
        return "; ".join(["no k-bit model was seen here", *failed])
    events = sys.modules.get("qlora_bf16_patch.watching.events")
    modules = events.modules_cast() if events else 0
    active = sum(row.state == "active" for row in rows)
    words = [
        f"{active} patches active",
        f"{models} k-bit model{'s' * (models > 1)}",
        f"casts in {modules} module{'s' * (modules != 1)}",
    ]
    return "; ".join([*words, *failed])
