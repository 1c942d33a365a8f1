"""A call that failed halfway is run again as if it had not been: what it wrote to its arguments is taken back.

A cache of keys and values is such an argument (transformers' ``past_key_values``). Which class it is does not matter:
what hangs on the object is remembered, and tensors that were written to in place are told by their version. In a first
call of a kind they are copied.
"""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Iterable
from typing import Any

import torch

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, types.FunctionType, types.MethodType, types.ModuleType)
_LARGEST = 2**28  # bytes of all copies: what is larger, a static cache, might not fit twice
_MOST = 4096  # holders: what is larger is no cache, and is not worth the look


@functools.cache
def _has_slots(cls: Any) -> bool:
    """Whether objects hold something outside of a ``__dict__``."""
    return any(base.__dict__.get("__slots__") for base in cls.__mro__)


class Snapshot:
    """What hangs on the arguments of a call that may be changed by it.

    Args:
        values: the arguments.
        copies: whether tensors are copied, as long as they are small, so that what is written to them in place can be
            taken back (transformers 5.23.0: FSMT fills its labels, ``shift_tokens_right``; a linear attention's state).
    """

    def __init__(self, values: Iterable[Any], copies: bool = False) -> None:
        self._tensors: list[tuple[torch.Tensor, int]] = []
        self._copies: list[tuple[torch.Tensor, int, torch.Tensor]] = []
        self._holders: list[tuple[Any, Any]] = []  # a dict or list, and a copy of it
        self._left = _LARGEST if copies else 0
        todo = []
        for value in values:
            if not isinstance(value, torch.Tensor):
                todo.append(value)
            elif not (self._left and self._copied(value)) and not value.is_inference():
                self._tensors.append((value, value._version))  # without a version: ids, which are not written to
        self._closed = False  # whether there is something that cannot be looked into
        seen = set()
        while todo and len(self._holders) < _MOST:  # one frame, since this is done at each call with a cache
            value = todo.pop()
            if isinstance(value, torch.Tensor):
                if not (self._left and self._copied(value)):
                    self._tensors.append((value, 0 if value.is_inference() else value._version))
            elif isinstance(value, _PLAIN) or isinstance(value, _OPAQUE) or id(value) in seen:
                continue
            elif isinstance(value, tuple):
                todo.extend(value)
            else:
                seen.add(id(value))
                attributes = getattr(value, "__dict__", None)
                if isinstance(value, list):
                    self._holders.append((value, list(value)))
                    todo.extend(value)
                elif isinstance(value, dict):
                    self._holders.append((value, dict(value)))
                    todo.extend(value.values())
                elif attributes is None:
                    self._closed = True
                if attributes is not None:
                    self._holders.append((attributes, dict(attributes)))
                    if not isinstance(value, torch.nn.Module):
                        todo.extend(attributes.values())
                cls: Any = type(value)
                self._closed = self._closed or _has_slots(cls)
        self.holds_something = self._closed or bool(self._holders)

    def _copied(self, tensor: torch.Tensor) -> bool:
        # What autograd knows of a tensor could not be taken back.
        if tensor.requires_grad or tensor.layout is not torch.strided or tensor.nbytes > self._left:
            return False
        self._left -= tensor.nbytes
        self._copies.append((tensor, -1 if tensor.is_inference() else tensor._version, tensor.clone()))
        return True

    def restore(self) -> bool:
        """Put everything back.

        Returns:
            False where a tensor that was not copied was written to in place, or may have been: one that was made in
        inference mode has no version. Nothing is changed then.
        """
        if self._closed or any(
            tensor.is_inference() or tensor._version != version for tensor, version in self._tensors
        ):
            return False
        for holder, before in self._holders:
            _put_back(holder, before)
        with torch.no_grad():
            for tensor, version, copy in self._copies:
                written = torch.is_inference_mode_enabled() if version < 0 else tensor._version != version
                if written:
                    tensor.copy_(copy)
        return True


def _put_back(holder: Any, before: Any) -> None:
    """By the methods of Python's own classes: transformers' ``ModelOutput`` refuses ``update``."""
    if isinstance(holder, list):
        if len(holder) != len(before) or any(a is not b for a, b in zip(holder, before, strict=True)):
            list.__setitem__(holder, slice(None), before)
        return
    if list(holder) == list(before) and all(holder[key] is before[key] for key in before):
        return
    cls: Any = collections.OrderedDict if isinstance(holder, collections.OrderedDict) else dict
    cls.clear(holder)
    for key, value in before.items():
        cls.__setitem__(holder, key, value)
