"""Start a program as a user does."""

import os
import subprocess
import sys

BROKEN = 'raise OSError("libbitsandbytes.so: cannot open shared object file")'  # a library's __init__.py


def python(*arguments, path="", **environ):
    """Python with these arguments, and modules of ``path`` before the installed ones."""
    environ = {"COLUMNS": "200", **environ, "PYTHONPATH": _joined(path, environ.get("PYTHONPATH"))}
    return _run([sys.executable, *arguments], environ)


def start(*program, options=(), cwd=None, command=None, **environ):
    """``run OPTIONS PROGRAM``, or ``command`` and the program; what it printed, and its exit status."""
    environ["PYTHONPATH"] = _joined(environ.get("PYTHONPATH"))
    command = command or [sys.executable, "-m", "qlora_bf16_patch", "run", *map(str, options)]
    return _run([*command, *map(str, program)], environ, cwd=cwd, input="in\n")


def _joined(*paths):
    return os.pathsep.join(filter(None, [*map(str, filter(None, paths)), os.environ.get("PYTHONPATH")]))


def _run(command, environ, **options):
    environ = os.environ | {"HF_HUB_OFFLINE": "1"} | environ
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300, **options)
