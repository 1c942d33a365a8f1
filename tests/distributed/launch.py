"""Runs scenarios on two ranks, without and with the shim, and tells where each rank stood if they do not end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engines import RAY

ROOT = Path(__file__).parents[2]
RANKS = 2
GRACE = 20  # seconds that a rank has, after the other one has failed
IMPORTS = 120  # seconds
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# No news from it, and no token in the home folder.
_RAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

Outcomes = list[dict[str, Any]]
"""What each rank found; or once, that it did not end, and where the ranks stood."""


def outcomes(names: Sequence[str], patched: bool, seconds: float = 120) -> dict[str, Outcomes]:
    """What the ranks find in each scenario, in the same two processes as far as they get.

    Args:
        names: of the scenarios.
        patched: False for the kill switch.
        seconds: that a scenario may take.
    """
    found: dict[str, Outcomes] = {}
    while left := [name for name in names if name not in found]:
        found |= _launched(left, patched, seconds)
    return found


def launched(name: str, patched: bool, seconds: float = 240) -> Outcomes:
    """The same of one scenario, whose processes are started by what its users start them with.

    Under ``torchrun`` that is any of ``rank.py``.
    """
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith(RAY):
            module = ["tests.distributed.workers"]
        else:
            module = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
            module += ["-m", "tests.distributed.rank"]
        command = [sys.executable, "-W", "ignore", "-m", *module, folder, name]
        variables = environment(patched, SECONDS_OF_A_SCENARIO=str(seconds), **_RAYS)
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=IMPORTS + 2 * seconds
            )
        except subprocess.TimeoutExpired as error:
            return [{"raised": f"{name} did not end: {error.stderr}"[-6000:]}]
        return read(Path(folder)).get(name, [{"raised": run.stderr[-6000:]}])


def environment(patched: bool, **more: str) -> dict[str, str]:
    return os.environ | _QUIET | _ONE_THREAD | {"QLORA_BF16_PATCH": str(int(patched)), "PYTHONPATH": str(ROOT)} | more


def _launched(names: Sequence[str], patched: bool, seconds: float) -> dict[str, Outcomes]:
    """Of at least the first name."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder, processes = Path(temporary), []
        shared = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(_free_port()), "SECONDS_OF_A_SCENARIO": str(seconds)}
        for rank in range(RANKS):
            error = stack.enter_context(open(folder / f"{rank}.stderr", "w"))
            variables = environment(patched, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
            command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.rank", str(folder), *names]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=error)
            )
        _wait(processes, IMPORTS + seconds * len(names))
        found = read(folder)
        if failed := next((name for name in names if name not in found), None):
            found[failed] = [{"raised": told(folder)}]
        return found


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all ranks have ended; a while after one has failed the others are made to."""
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if any(process.poll() for process in processes):
            end = min(end, time.monotonic() + GRACE)
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGABRT)
            process.wait()


def read(folder: Path) -> dict[str, Outcomes]:
    """Of the scenarios that every rank has ended."""
    lines = [_lines(folder / f"{rank}.jsonl") for rank in range(RANKS)]
    return {name: [found[name] for found in lines] for name in lines[0] if all(name in found for found in lines)}


def _lines(file: Path) -> dict[str, dict[str, Any]]:
    return dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {}


def told(folder: Path) -> str:
    """Where each rank stood: in which scenario, and in which statement."""
    return "\n".join(_stood(folder / f"{rank}.stderr", rank) for rank in range(RANKS))


def _stood(file: Path, rank: int) -> str:
    text = file.read_text()
    begun = re.findall(r"^scenario (.+)$", text, re.MULTILINE)
    # faulthandler tells the main thread last, and the innermost frame first; a traceback ends with the error.
    _, dumped, frames = text.rpartition("(most recent call first):\n")
    stood = frames[:3000] if dumped else text[-3000:]
    return f"rank {rank} in {begun[-1] if begun else 'its imports'}:\n{stood}"


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
