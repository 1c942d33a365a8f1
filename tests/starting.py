"""Start a program as a user does, under ``run`` or plainly."""

import os
import subprocess
import sys


def start(*program, options=(), cwd=None, command=None, **environ):
    """``run OPTIONS PROGRAM``, or ``command`` and the program; what it printed, and its exit status."""
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]))
    environ = os.environ | {"HF_HUB_OFFLINE": "1"} | environ
    command = command or [sys.executable, "-m", "qlora_bf16_patch", "run", *map(str, options)]
    return subprocess.run(
        [*command, *map(str, program)], capture_output=True, text=True, env=environ, cwd=cwd, timeout=300, input="in\n"
    )
