"""The contracts' tests, counted by file: of the layers, of switching on and off, of compiled code."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from .counting import counted
from .older import before

LAYERS = (
    *(f"tests/patches/test_{name}.py" for name in ("linear4bit", "linear8bit", "lora", "boundary", "modules")),
    "tests/training/test_parity.py",
    "tests/recipes/test_older_transformers.py",
)
TOGGLES = (
    *(f"tests/engine/test_{name}.py" for name in ("binding", "registry", "status", "wrapping")),
    *(f"tests/patches/test_{name}.py" for name in ("strangers", "autocast_output", "generate")),
)
COMPILED = ("tests/patches/test_compile.py",)


def contracts(names: Collection[str] | None = None) -> dict[str, Any]:
    return _counted(LAYERS, names)


def toggles() -> dict[str, Any]:
    return _counted(TOGGLES)


def compiled() -> dict[str, Any]:
    return _counted(COMPILED)


def _counted(files: tuple[str, ...], names: Collection[str] | None = None) -> dict[str, Any]:
    # Without kernels for 8 bits, see reference.py: test_linear8bit.py, and test_parity.py's of LORA-8-... and the like
    no8 = ("-k", "not 8bit and not -8- and not -8]") if before("bitsandbytes", "0.46") else ()
    by_name = {Path(file).stem.removeprefix("test_"): file for file in files}
    return {
        name: counted("-p", "tests.versions.older", *no8, file)
        for name, file in by_name.items()
        if names is None or name in names
    }
