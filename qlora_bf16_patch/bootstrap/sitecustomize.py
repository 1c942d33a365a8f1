"""Put on ``PYTHONPATH`` by ``qlora-bf16-patch run``: every Python that starts below it has the shim on.

It imports next to nothing, since most processes of a launcher never import torch. The shim is imported before the first
library that it patches.
"""

from __future__ import annotations

import os
import sys

from _qlora_bf16_patch_children import tell, watch  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Not the other file's: behind another installation's folder that one is the other installation's.
HERE = os.path.dirname(os.path.abspath(__file__))
# Torch, and the packages that the patches' targets are in: peft's own modules may be the first to import torch.
PATCHED = frozenset(("torch", "bitsandbytes", "peft", "transformers"))


class First:
    """A finder that finds nothing itself: it imports the shim before the first library of :data:`PATCHED`."""

    waiting = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not self.waiting or name not in PATCHED:
            return None
        self.waiting = False
        if self in sys.meta_path:  # somebody may have put a finder around it
            sys.meta_path.remove(self)
        try:
            from qlora_bf16_patch import run
        except ImportError as error:
            tell(f"{sys.executable} has no qlora_bf16_patch ({error}): the shim is not on in it")
        else:
            run.started()
        from importlib.util import find_spec

        # Import goes through the finders by number, and now they are others: it would leave one out.
        return find_spec(name) if target is None else None


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
sys.addaudithook(watch)
run_the_other()
