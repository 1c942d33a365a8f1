"""Tell a callback when a library has been imported, in any import order."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import wrapt

Arrival = Callable[[ModuleType, bool], bool]
"""``arrived(module, complete)``: ``complete`` says whether the module's body and those of its packages have run."""


def when_imported(name: str, arrived: Arrival) -> None:
    """Call ``arrived`` once the module ``name`` is imported, at once if it is already.

    Args:
        name: full name of the module.
        arrived: must not raise, since an exception would surface in the user's own import and be lost. It returns
            False where the module is not ready; it is then called again at the next import of anything, and by
            :func:`retry`. Several threads may call it at once.
    """
    in_time = name not in sys.modules  # wrapt calls it after the body, while importlib still says that it is running
    wrapt.register_post_import_hook(functools.partial(_imported, arrived, in_time), name)


def retry() -> None:
    """Call again for the modules that were not ready."""
    if not _waiting or getattr(_retrying, "here", False):
        return
    _retrying.here = True
    try:
        for item in list(_waiting):
            if item.offer():
                _stop_waiting(item)
    finally:
        _retrying.here = False


class _Item(NamedTuple):
    module: ModuleType
    arrived: Arrival
    body_has_run: bool

    def offer(self) -> bool:
        names = self.module.__name__.split(".")
        packages = (sys.modules.get(".".join(names[:end])) for end in range(1, len(names)))
        ran = self.body_has_run or not _initialising(self.module)
        return self.arrived(self.module, ran and not any(map(_initialising, packages)))


def _imported(arrived: Arrival, in_time: bool, module: ModuleType) -> None:
    item = _Item(module, arrived, body_has_run=in_time)
    if not item.offer():
        with _lock:
            _waiting.append(item)
            if _occasion not in sys.meta_path:
                sys.meta_path.insert(0, _occasion)


def _initialising(module: ModuleType | None) -> bool:
    """Whether the module's body may still be running, here or in another thread (importlib's own flag)."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _stop_waiting(item: _Item) -> None:
    with _lock:
        if item in _waiting:
            _waiting.remove(item)
        if not _waiting and _occasion in sys.meta_path:
            sys.meta_path.remove(_occasion)


class _Occasion:
    """A finder that finds nothing: Python does not tell when a module is complete, but a later import is a moment to
    look. It stands in ``sys.meta_path`` only while something waits."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        retry()


_lock = threading.Lock()  # held for a few lines each, never while something is called
_waiting: list[_Item] = []
_occasion = _Occasion()
_retrying = threading.local()
