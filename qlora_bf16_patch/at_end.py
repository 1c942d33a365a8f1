"""What a process of a program that was started by ``run`` tells, and writes, at its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .bootstrap import _qlora_bf16_patch_children as children
from .engine.imports import when_imported
from .trace_file import TraceFile

if TYPE_CHECKING:
    from .engine.patch import Status
    from .inspection.program import ProgramTrace
    from .inspection.trace import Trace

_quiet = _started = False
_told_in = 0  # the process
_models_before: int | None = None  # a fork, in a process that was forked
_traced: _Traced | None = None


def tell(quiet: bool) -> None:
    """Tell one line at the end of this process, and of those that it forks.

    Args:
        quiet: where something is wrong alone.
    """
    global _quiet, _started
    _quiet = quiet
    if not _started:  # two threads may import their first library at once
        _started = True
        atexit.register(_tell)
        os.register_at_fork(after_in_child=_forked)
        when_imported("multiprocessing.util", _tell_in_workers)


def _tell_in_workers(util: Any, complete: bool) -> bool:
    """A worker of ``multiprocessing`` leaves out what was to be done at the end, but for what it registers itself.

    It calls this when it has forgotten its parent's (Lib/multiprocessing/process.py, _bootstrap; Python 3.10 to 3.14).
    """
    util.register_after_fork(_tell, lambda _: util.Finalize(None, _tell, exitpriority=0))
    return True


def trace(file: str) -> None:
    """Write a trace of this process to ``file`` or beside it, if it runs a k-bit model."""
    global _traced
    if _traced is None:
        _traced = _Traced(file)
        when_imported("bitsandbytes", _traced.start)  # without it there is no such model


class _Traced:
    def __init__(self, file: str) -> None:
        self.file = TraceFile(file)
        self.program: ProgramTrace | None = None
        self.problem: str | None = None

    def start(self, module: ModuleType, complete: bool) -> bool:
        try:
            from .inspection.program import ProgramTrace

            self.program = ProgramTrace(self.write)
            self.program.start()
        except Exception as error:  # the program's own import is running
            self.problem = f"{type(error).__name__}: {error}"
        return True

    def write(self, found: Trace) -> None:
        """Write it, if anything ran."""
        if found.ran:
            self.file.write(found.to_json())

    def ended(self) -> tuple[list[str], list[str]]:
        """Where the trace is, and what went wrong, in words."""
        problems = [self.problem]
        if self.program is not None:
            try:
                self.write(self.program.result())
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
            problems.append(self.program.failure)
        problems.append(self.file.problem)
        written = self.file.written if not self.file.problem else None
        return [f"trace in {_as_seen_from_here(written)}"] if written else [], [
            f"the trace is not whole: {problem}" for problem in problems if problem
        ]


def _as_seen_from_here(file: str) -> str:
    with contextlib.suppress(OSError):  # the folder that the process is in may be gone
        beside = os.path.relpath(file)
        return file if beside.startswith(os.pardir) else beside
    return file


def _forked() -> None:
    """In a process that was forked: what was cast before is its parent's."""
    global _models_before
    _models_before = count("numerics.training", "taken_in")
    if events := sys.modules.get("qlora_bf16_patch.watching.events"):
        events.forget_modules()


def _tell() -> None:
    """One line at the end: what was patched, and how many modules were cast."""
    global _told_in
    if _told_in == os.getpid():
        return
    _told_in = os.getpid()
    where, wrong = _traced.ended() if _traced is not None else ([], [])
    models = count("numerics.training", "taken_in")
    if _models_before == models and not (where or wrong or count("watching.events", "modules_cast")):
        return  # a worker that loads data
    from . import status

    rows = status()
    done = _done(rows, models, bool(where))
    if _traced is not None and not where and not wrong:
        where = ["no trace of this process"]
    failed = [f"{row.name} is {row.state}: {row.reason}" for row in rows if row.state in ("failed", "shadowed")]
    if failed or wrong or not _quiet:
        # Not sys.stderr: a notebook's kernel has its own there, which nobody reads any more (ipykernel 7.4).
        children.tell("; ".join([done, *where, *failed, *wrong]), sys.__stderr__)


def _done(rows: list[Status], models: int, is_traced: bool) -> str:
    """What the shim did in this process, in words."""
    active = f"{sum(row.state == 'active' for row in rows)} patches active"
    if models:
        modules = count("watching.events", "modules_cast")
        return f"{active}; {models} k-bit model{'s' * (models > 1)}; casts in {modules} module{'s' * (modules != 1)}"
    if is_traced:
        return f"{active}; no k-bit model was taken in"
    all_off = all(row.state == "off" for row in rows)
    return f"no k-bit model was {'taken in: every patch is off' if all_off else 'seen here'}"


def count(module: str, function: str) -> int:
    """What a function of ours counts; 0 while nobody has imported it."""
    found = sys.modules.get(f"qlora_bf16_patch.{module}")
    return int(getattr(found, function)()) if found is not None else 0
