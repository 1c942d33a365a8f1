"""A call that failed halfway is run again as if it had not been: what it wrote to its arguments is taken back.

A cache of keys and values is such an argument (transformers' ``past_key_values``). Which class it is does not matter:
what hangs on the object is remembered, and tensors that were written to in place are told by their version. In a first
call of a kind they are copied.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import types
from collections.abc import Iterable
from typing import Any

import torch

_PLAIN = {bool, str, bytes, int, float, complex, slice, type(None), torch.dtype, torch.device, torch.Size}
_OPAQUE = (*_PLAIN, type, types.FunctionType, types.MethodType, types.ModuleType)
# Bytes that are kept alive, or copied, for a call: a cache that is larger might not fit twice.
_LARGEST = 2**27
_MOST = 4096  # holders, and items of one: what is larger is no cache, and is not worth the look


@functools.cache
def _has_slots(cls: Any) -> bool:
    """Whether objects hold something outside of a ``__dict__``."""
    return any(base.__dict__.get("__slots__") for base in cls.__mro__)


class Snapshot:
    """What hangs on the arguments of a call that may be changed by it.

    Args:
        values: the arguments.
        copies: whether tensors are copied, so that what is written to them in place can be taken back (transformers
            5.23.0: FSMT fills its labels, ``shift_tokens_right``; a linear attention's state).
    """

    def __init__(self, values: Iterable[Any], copies: bool = False) -> None:
        self._tensors: list[tuple[torch.Tensor, int]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._buffers: list[tuple[memoryview, bytes]] = []
        self._holders: list[tuple[Any, Any]] = []  # a dict, list or set, and a copy of it
        self._left = _LARGEST
        self._closed = False  # whether there is something that cannot be looked into
        todo = []
        for value in values:
            if not isinstance(value, torch.Tensor):
                todo.append(value)
            elif not (copies and self._copied(value)) and not value.is_inference():
                self._tensors.append((value, value._version))  # without a version: ids, which are not written to
        seen = set()
        while todo:  # one frame, since this is done at each call with a cache
            value = todo.pop()
            cls: Any = type(value)
            if cls in _PLAIN:
                continue
            if isinstance(value, torch.Tensor):
                self._left -= value.nbytes if value.layout is torch.strided else 0
                if not (copies and self._copied(value)):
                    self._tensors.append((value, 0 if value.is_inference() else value._version))
            elif isinstance(value, tuple):
                todo.extend(value)
            elif not isinstance(value, _OPAQUE) and id(value) not in seen:
                seen.add(id(value))
                attributes = getattr(value, "__dict__", None)
                if isinstance(value, (list, dict, set)):
                    if len(value) > _MOST or len(seen) > _MOST:
                        self._left = -1
                        break
                    copied: Any = list if isinstance(value, list) else dict if isinstance(value, dict) else set
                    held = copied(value)
                    self._holders.append((value, held))
                    todo.extend(held.values() if copied is dict else held)
                elif attributes is None:
                    self._without_dict(value)
                if attributes is not None:
                    self._holders.append((attributes, dict(attributes)))
                    if not isinstance(value, torch.nn.Module):
                        todo.extend(attributes.values())
                self._closed = self._closed or _has_slots(cls)
            if self._left < 0:
                break
        if self._left < 0:
            self._closed = True
            self._tensors, self._copies, self._holders = [], [], []
        self.holds_something = self._closed or bool(self._holders)

    def restore(self) -> bool:
        """Put everything back.

        Returns:
            False where that cannot be done: a tensor that was not copied was written to in place, or may have been (one
            that was made in inference mode has no version); there is more than was kept. The call must not be run
            again then.
        """
        if self._closed or any(
            tensor.is_inference() or tensor._version != version for tensor, version in self._tensors
        ):
            return False
        with torch.no_grad():
            if not all(_written_back(tensor, copy) for tensor, copy in self._copies):
                return False
        for buffer, content in self._buffers:
            buffer[:] = content
        for holder, before in self._holders:
            _put_back(holder, before)
        return True

    def _copied(self, tensor: torch.Tensor) -> bool:
        if tensor.requires_grad or tensor.is_meta or tensor.layout is not torch.strided or tensor.nbytes > self._left:
            return False
        with contextlib.suppress(Exception):  # a subclass may refuse
            self._copies.append((tensor, tensor.clone()))
            self._left -= tensor.nbytes
            return True
        return False

    def _without_dict(self, value: Any) -> None:
        """An object of a class that is written in C: a hashable one is a number or the like, an array has its bytes."""
        if type(value).__hash__ is not None:
            return
        try:
            buffer = memoryview(value).cast("B")
        except TypeError:
            self._closed = True
            return
        self._left -= buffer.nbytes
        if not buffer.readonly and self._left >= 0:
            self._buffers.append((buffer, bytes(buffer)))


def _written_back(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether a tensor has the values of its copy again, and no history; one whose elements overlap takes none."""
    try:
        if tensor.requires_grad:  # what was added to it in place does; a view of something stays in its graph
            tensor.detach_()
        if not torch.equal(tensor, copy):  # and not by its version, which writes through `.data` do not change
            tensor.copy_(copy)
    except RuntimeError:
        return False
    return True


def _put_back(holder: Any, before: Any) -> None:
    """By the methods of Python's own classes: transformers' ``ModelOutput`` refuses ``update``."""
    if isinstance(holder, list):
        if len(holder) != len(before) or any(a is not b for a, b in zip(holder, before, strict=True)):
            list.__setitem__(holder, slice(None), before)
        return
    if isinstance(holder, set):
        set.intersection_update(holder, before)
        set.update(holder, before)
        return
    if list(holder) == list(before) and all(holder[key] is before[key] for key in before):
        return
    cls: Any = collections.OrderedDict if isinstance(holder, collections.OrderedDict) else dict
    cls.clear(holder)
    for key, value in before.items():
        cls.__setitem__(holder, key, value)
