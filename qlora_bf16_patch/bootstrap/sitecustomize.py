"""Put on ``PYTHONPATH`` by ``qlora-bf16-patch run``: every Python that starts below it has the shim on.

It imports next to nothing, since most processes of a launcher never import torch. The shim is imported before the first
library that it patches.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
# Torch, and the packages that the patches' targets are in: peft's own modules may be the first to import torch.
PATCHED = frozenset(("torch", "bitsandbytes", "peft", "transformers"))
# An interpreter that is started so does not read PYTHONPATH, or no sitecustomize.
ISOLATED = frozenset("IES")


class First:
    """A finder that finds nothing: it imports the shim before the first library of :data:`PATCHED`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in PATCHED:
            sys.meta_path.remove(self)
            try:
                from qlora_bf16_patch import run
            except ImportError as error:
                tell(f"{sys.executable} has no qlora_bf16_patch ({error}): the shim is not on in it")
            else:
                run.started()


def tell(text: str) -> None:
    sys.stderr.write(f"qlora-bf16-patch: process {os.getpid()}: {text}\n")


def watch_children(event: str, arguments: tuple[Any, ...]) -> None:
    """Tell of a Python that is started where this file will not be read."""
    if event == "subprocess.Popen":
        _, command, _, environ = arguments
    elif event in ("os.exec", "os.posix_spawn"):
        _, command, environ = arguments
    else:
        return
    words = [os.fsdecode(word) for word in ([command] if isinstance(command, (str, bytes)) else command or ())]
    if not words or not os.path.basename(words[0]).startswith("python"):
        return
    flags = {letter for word in _options(words) for letter in word[1:]}
    if flags & ISOLATED:
        tell(f"`{' '.join(words[:3])}` runs isolated: the shim is not on in it")
    elif environ is not None and HERE not in _path_of(environ):
        tell(f"`{' '.join(words[:3])}` is started with another PYTHONPATH: the shim is not on in it")


def _options(words: list[str]) -> Iterator[str]:
    """The interpreter's own, before the script, ``-m`` or ``-c``."""
    for word in words[1:]:
        if not word.startswith("-") or word[:2] in ("-m", "-c"):
            return
        if not word.startswith("--"):
            yield word


def _path_of(environ: Mapping[Any, Any]) -> list[str]:
    found = environ.get("PYTHONPATH") or environ.get(b"PYTHONPATH") or ""
    return os.fsdecode(found).split(os.pathsep)


def run_the_other() -> None:
    """The sitecustomize that this one stands before."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if entry != HERE]
sys.meta_path.insert(0, First())
sys.addaudithook(watch_children)
run_the_other()
