"""Tell a callback when a library has been imported, in any import order. It imports no torch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

import wrapt

Arrival = Callable[[ModuleType], bool]


def when_imported(name: str, arrived: Arrival) -> None:
    """Call ``arrived(module)`` once the module ``name`` is imported, at once if it is already.

    Args:
        name: full name of the module.
        arrived: must not raise, since an exception would surface in the user's own import and be lost. It returns
            False where the module is half-initialised and not ready; it is then called again at the next import of
            anything, and by :func:`retry`.
    """

    def notified(module: ModuleType) -> None:
        if not arrived(module):
            _waiting.append((module, arrived))
            if _occasion not in sys.meta_path:
                sys.meta_path.insert(0, _occasion)

    wrapt.register_post_import_hook(notified, name)


def half_initialised(module: ModuleType) -> bool:
    """Whether the module's body may still be running, here or in another thread (importlib's own flag)."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def retry() -> None:
    """Call again for the modules that were not ready."""
    if getattr(_retrying, "here", False):
        return
    _retrying.here = True
    try:
        for item in list(_waiting):
            module, arrived = item
            if arrived(module) and item in _waiting:
                _waiting.remove(item)
    finally:
        _retrying.here = False
    if not _waiting and _occasion in sys.meta_path:
        sys.meta_path.remove(_occasion)


class _Occasion:
    """A finder that finds nothing: Python does not tell when a module is complete, but a later import is a moment to
    look. It stands in ``sys.meta_path`` only while something waits."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        retry()


_waiting: list[tuple[ModuleType, Arrival]] = []
_occasion = _Occasion()
_retrying = threading.local()
