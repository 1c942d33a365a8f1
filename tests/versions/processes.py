"""Runs a part of a record in a process of its own, cleans its words of what only this machine has, and names it."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qlora_bf16_patch.doctor.machine import processor

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "versions"
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run(*arguments: str, minutes: float = 10, **environ: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments and variables, at the root of the repository; out of time is exit status 124."""
    command = [sys.executable, "-W", "ignore", *arguments]
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | _QUIET | environ,
            capture_output=True,
            text=True,
            timeout=minutes * 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no end in {minutes} minutes")


def last_line(text: str) -> str:
    """Of a traceback, the error."""
    return told((text.strip().splitlines() or ["no output"])[-1])


def told(text: str) -> str:
    """One line without this machine's paths and addresses."""
    text = re.sub(r"/\S*/site-packages/|/\S*/lib/python3\.\d+/", "", text.replace(f"{ROOT}/", ""))
    return re.sub(r"\b0x[0-9a-f]+", "0x...", re.sub(r"/tmp/\S+", "a folder", " ".join(text.split())))[:300]


def about(*libraries: str) -> dict[str, Any]:
    """The day, the machine, Python, and which of these libraries are installed in which release."""
    versions = {}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    day = datetime.date.today().isoformat()
    return {"date": day, "machine": machine(), "python": platform.python_version(), "versions": versions}


def machine() -> str:
    """The processor, and what bitsandbytes chooses its kernels by."""
    one = processor()
    return f"{one['name']}, {'with' if 'avx512_bf16' in one['bfloat16'] else 'without'} AVX512-bf16, no GPU"
