"""A run without the shim, with it switched off, with some or all of it, and how many operations it dispatches."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import devices  # isort: skip  # before torch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import qlora_bf16_patch

ON_BY_DEFAULT = [row.name for row in qlora_bf16_patch.status() if row.state != "off"]


@contextlib.contextmanager
def unpatched() -> Iterator[None]:
    """As if the shim had not been imported: the very methods of the libraries."""
    qlora_bf16_patch.uninstall()
    try:
        yield
    finally:
        qlora_bf16_patch.enable(*ON_BY_DEFAULT)


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    """What people do without the shim."""
    with unpatched(), torch.autocast(devices.TYPE, torch.bfloat16):
        yield


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """``peft.boundary`` alone: the layers compute as upstream's do, which may be faster or slower than with theirs."""
    with qlora_bf16_patch.disabled(), qlora_bf16_patch.enabled("peft.boundary"):
        yield


CONDITIONS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "unpatched": unpatched,
    "off": qlora_bf16_patch.disabled,
    "watching": watching,
    "shim": contextlib.nullcontext,
    "shim + generate": lambda: qlora_bf16_patch.enabled("transformers.generate"),
    "autocast": autocast,
}


def counted(run: Callable[[], Any], condition: str) -> Counter:
    """What ``run`` dispatches under a condition, entered for this run alone."""
    with CONDITIONS[condition]():
        run()  # some keep what their first call computes
    with CONDITIONS[condition](), Counter() as counter:
        run()
    return counter


def _storages(values: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """Those of dense tensors; a sparse one has none."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            yield value.untyped_storage()


class Counter(TorchDispatchMode):
    """Counts dispatched operations, and the bytes of the storages that they made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        given = {storage.data_ptr() for storage in _storages(args)}
        for storage in _storages(result if isinstance(result, (list, tuple)) else (result,)):
            if storage.data_ptr() not in given:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() in self._seen:
            return
        self._seen.add(storage.data_ptr())
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._remove, storage.data_ptr(), storage.nbytes())

    def _remove(self, pointer: int, size: int) -> None:
        self._seen.discard(pointer)
        self.alive -= size
