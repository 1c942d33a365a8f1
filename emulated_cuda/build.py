"""Builds ``device.cpp`` and loads it into the process. Imports no torch, which must find the device's hooks there."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def load() -> ctypes.CDLL:
    """Make the device known to this process, and return its library.

    Raises:
        RuntimeError: torch is imported already; it asks for the hooks once and keeps the answer.
        subprocess.CalledProcessError: the device does not compile against the installed torch.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the emulated device must be loaded before torch is imported")
    libraries = _torch() / "lib"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(_built()))


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _built() -> Path:
    """The library, compiled once (half a minute) for each release of torch and each version of the source."""
    key = hashlib.sha256(importlib.metadata.version("torch").encode() + SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"qlora_bf16_patch_tests_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"emulated_cuda_{key}.so"
    if not built.exists():
        include, own = _torch() / "include", built.with_suffix(f".{os.getpid()}.so")
        command = [compiler() or "c++", "-O1", "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(own)]
        command += [f"-isystem{include}", f"-isystem{include}/torch/csrc/api/include"]
        subprocess.run([*command, f"-L{_torch()}/lib", "-lc10", "-ltorch_cpu"], check=True)
        own.replace(built)  # at once, since another process may build it as well
    return built
