"""A program with the shim on, and what its processes leave."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ..bootstrap import _qlora_bf16_patch_children as children
from ..run import REPORTS, prepared


def watched(program: Sequence[str], environ: MutableMapping[str, str], stdout: int | None = None) -> dict[str, Any]:
    """Run a program to its end. Its arguments, standard input and error, and its signals are its own.

    Args:
        program: as for ``run``.
        environ: the environment that it gets.
        stdout: where its standard output goes; by default where it went.

    Returns:
        Its command, its exit status (negative for a signal, as in :mod:`subprocess`), and what each process left.

    Raises:
        ProgramNotFoundError: there is none, as for ``run``.
        OSError: it could not be started.
    """
    command = prepared(program, environ)
    isolated = children.why_not(command[0], command, environ)
    with tempfile.TemporaryDirectory(prefix="qlora-bf16-patch-") as folder:
        environ[REPORTS] = folder
        if sys.stdout is not None:
            sys.stdout.flush()
        process = subprocess.Popen(command, env=dict(environ), stdout=stdout)
        with _its_signals(process):
            status = process.wait()
        left = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    return {"command": list(program), "status": status, "isolated": isolated, "processes": left}


@contextlib.contextmanager
def _its_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The program decides what comes of a signal, and doctor tells it. A terminal's Ctrl-C reaches both of them."""
    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN}
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # of schedulers; not all of them on Windows
        if hasattr(signal, name):
            handlers[getattr(signal, name)] = lambda number, frame: process.send_signal(number)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
