"""The files of ``run --trace FILE``: each process that ran a k-bit model has one of its own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

MARK = '"format": "qlora_bf16_patch trace'  # near the beginning of each (inspection/trace.py)


class TraceFileError(ValueError):
    """No trace can be written there."""


def prepared(file: str) -> str:
    """Where the traces go, as an absolute path; those of an earlier run are taken away.

    Raises:
        TraceFileError: the folder is not there or not to be written to, or the file holds something else.
    """
    path = Path(os.path.realpath(file))
    if not path.parent.is_dir():
        raise TraceFileError(f"--trace {file}: there is no folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK):
        raise TraceFileError(f"--trace {file}: the folder {str(path.parent)!r} cannot be written to")
    if path.exists() and not _is_trace(path):
        raise TraceFileError(f"--trace {file}: this is no trace, and is left as it is: name another file")
    others = re.compile(rf"{re.escape(path.stem)}\.(rank)?\d+{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if other == path or (others.fullmatch(other.name) and _is_trace(other)):
            other.unlink()
    return str(path)


def _is_trace(path: Path) -> bool:
    """Whether it is one, or is empty."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(200)
    return not head or MARK.encode() in head


class TraceFile:
    """This process's: FILE itself for the first one, or for that of rank 0.

    Args:
        file: what :func:`prepared` has returned.

    Attributes:
        problem: why the last writing failed.
    """

    def __init__(self, file: str) -> None:
        self.problem: str | None = None
        self._file, self._own, self._process = Path(file), "", 0

    @property
    def written(self) -> str | None:
        """Its path, if this process has one."""
        return self._own if self._own and self._process == os.getpid() else None

    def write(self, text: str) -> None:
        """Write it anew, all of it or nothing."""
        try:
            if self.written is None:
                self._own, self._process = self._claimed(), os.getpid()
            part = f"{self._own}.{self._process}"
            try:
                Path(part).write_text(text, encoding="utf-8")
                os.replace(part, self._own)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part)
                raise
        except OSError as error:
            self.problem = str(error)
        else:
            self.problem = None

    def _claimed(self) -> str:
        for name in _names(self._file, os.environ):
            try:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            except FileExistsError:
                continue
            return str(name)
        return str(name)  # of a process that had this one's number


def _names(file: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    rank = environ.get("RANK", "0")  # of torch.distributed
    yield file if rank == "0" else file.with_name(f"{file.stem}.rank{rank}{file.suffix}")
    yield file.with_name(f"{file.stem}.{os.getpid()}{file.suffix}")
