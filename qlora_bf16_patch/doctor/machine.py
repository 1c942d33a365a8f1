"""The machine, and the variables that switch the shim."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from ..engine.environment import MAIN


def machine() -> dict[str, Any]:
    """What a dtype's arithmetic depends on, for JSON."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_torch(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(MAIN)},
    }


def processor() -> dict[str, Any]:
    """Its name and its instructions for bfloat16: bitsandbytes chooses kernels by them."""
    name, flags = platform.processor(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags.update(value.split())
    return {"name": name or platform.machine(), "bfloat16": sorted(flag for flag in flags if "bf16" in flag)}


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"torch": f"{type(error).__name__}: {error}", "gpus": []}
    return {
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory": found.total_memory,
        "bfloat16": found.major >= 8 or torch.version.hip is not None,  # torch.cuda.is_bf16_supported
    }
