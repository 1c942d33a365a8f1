"""Tells of a Python that is started where the shim will not be on. Imported in every Python below ``run``."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
# An interpreter that is started so does not read PYTHONPATH, or no sitecustomize.
ISOLATED = frozenset("IES")
# multiprocessing starts a Python by a function that is not audited. Beside it one is, and no other of its kind in these
# modules (Lib/multiprocessing of Python 3.10 to 3.14).
BESIDE = {"open": "multiprocessing.popen_spawn_posix", "socket.bind": "multiprocessing.forkserver"}


def tell(text: str, stream: Any = None) -> None:
    try:
        (stream or sys.stderr).write(f"qlora-bf16-patch: process {os.getpid()}: {text}\n")
    except (AttributeError, OSError, ValueError):  # it is closed; from the start on it is None
        return


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. It must not raise: what is wrong with the arguments, the call itself says."""
    try:
        if event == "subprocess.Popen":
            executable, command, _, environ = arguments
        elif event in ("os.exec", "os.posix_spawn"):
            executable, command, environ = arguments
            if not os.access(executable, os.X_OK):  # os.execvp tries each folder of PATH
                return
            if sys._getframe(1).f_globals.get("__name__") == "subprocess":  # its Popen has been told
                return
        elif event in BESIDE and sys._getframe(1).f_globals.get("__name__") == BESIDE[event]:
            executable, environ = sys.modules["multiprocessing.spawn"].get_executable(), None
            command = (executable, "-c", f"from {BESIDE[event]}")
        else:
            return
        reason = why_not(executable, command, environ)
    except Exception:
        return
    if reason:
        tell(reason)


def why_not(executable: Any, command: Any, environ: Any) -> str | None:
    """Why a command will not have the shim on; None where it will, or is no Python.

    Args:
        executable: the file that is started, or None.
        command: its name and arguments.
        environ: its environment; None is this process's.
    """
    words = [os.fsdecode(word) for word in ([command] if isinstance(command, (str, bytes)) else command)]
    shown = " ".join(words[:3]).partition("\n")[0]
    started = os.fsdecode(words[0] if executable is None else executable)
    words = [*_interpreter(started), *words[1:]]
    if not os.path.basename(words[0]).startswith("python"):
        return None
    if not ISOLATED.isdisjoint(_options(words)):
        return f"`{shown}` runs isolated: the shim is not on in it"
    if HERE not in _path_of(os.environ if environ is None else environ):
        return f"`{shown}` is started with another PYTHONPATH: the shim is not on in it"
    return None


def _interpreter(file: str) -> list[str]:
    """A file and, before it, what its first line says that is to run it."""
    if os.path.basename(file).startswith("python"):  # pyenv's is a script, and hands on its arguments
        places = []
    elif os.path.dirname(file):
        places = [file]
    else:
        places = [os.path.join(folder, file) for folder in os.get_exec_path()]
    for place in filter(os.path.isfile, places):
        with open(place, "rb") as script:
            line = os.fsdecode(script.readline(512)) if script.read(2) == b"#!" else ""
        words = line.split()
        if words and os.path.basename(words[0]) == "env":
            words = words[2:] if words[1:2] == ["-S"] else words[1:]
        return [*words, file]
    return [file]


def _options(words: list[str]) -> Iterator[str]:
    """The interpreter's own letters, before the script, ``-m`` or ``-c``."""
    rest = iter(words[1:])
    for word in rest:
        if word in ("-", "--") or not word.startswith("-"):
            return
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(rest, None)
            continue
        for position, letter in enumerate(word[1:], 2):
            if letter in "cm":
                return
            if letter in "WX":  # what follows is its value
                if position == len(word):
                    next(rest, None)
                break
            yield letter


def _path_of(environ: Any) -> list[str]:
    """PYTHONPATH; names and values may be str or bytes."""
    found = [value for name, value in environ.items() if os.fsencode(name) == b"PYTHONPATH"]
    return os.fsdecode(found[0]).split(os.pathsep) if found else []
