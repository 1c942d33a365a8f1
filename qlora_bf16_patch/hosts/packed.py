"""What a model's code does with a packed weight as if it were a matrix, kept right inside a function mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .bitsandbytes import is_kbit_weight

_T: Any = torch.Tensor
_CLAMPS = (torch.clamp, torch.clamp_, torch.Tensor.clamp, torch.Tensor.clamp_)
_DTYPE, _DATA = _T.dtype.__get__, _T.data.__get__


class PackedWeights:
    """The functions that are handled for one run under the mode.

    A packed weight is stored in ``uint8`` or ``int8``, and a model that casts activations to its weights' dtype
    destroys them (T5's feed-forward: ``hidden_states.to(self.wo.weight.dtype)``). Where a read of the dtype is to be
    answered, the answer is that of the weight which was quantized. A 4-bit weight is dequantized before it is clamped,
    and a frozen one is not clamped in place (Gemma3n, ``self.prediction_coefs.weight.data.clamp_``; transformers
    5.23.0).

    Args:
        asked: told what is handled: the operation, the operand, the dtype that it has, the one that it is taken for. It
            says no inside of k-bit layers, which know what they hold.
        answered: asked, before that, at each read of a packed weight's dtype.
        source_kept: called with the integers that floating activations were cast to, and those.

    Attributes:
        handlers: by torch's function, each a ``handler(mode, func, args, kwargs)``.
    """

    def __init__(
        self,
        asked: Callable[[Any, str, torch.dtype, torch.dtype], bool],
        answered: Callable[[], bool],
        source_kept: Callable[[torch.Tensor, torch.Tensor], None] = lambda *_: None,
    ) -> None:
        self._asked, self._answered, self._source_kept = asked, answered, source_kept
        self._data: list[tuple[torch.Tensor, Any]] = []  # what `weight.data` of a packed weight has given
        self.handlers: dict[Any, Callable[..., Any]] = {
            _DTYPE: self._dtype,
            _DATA: self._data_of,
            torch.Tensor.to: self._like,
            torch.Tensor.type_as: self._like,
            torch.Tensor.type: self._like,
            **dict.fromkeys(_CLAMPS, self._clamp),
        }

    def _dtype(self, mode: Any, func: Any, args: Any, kwargs: Any) -> Any:
        dtype = func(*args, **kwargs)
        if dtype.is_floating_point:
            return dtype
        weight = self._weight(args[0])
        return dtype if weight is None else self._answer(weight, dtype)

    def _like(self, mode: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """``x.to(weight)``, ``x.type_as(weight)``: the dtype is read in C."""
        other = args[1] if len(args) > 1 else kwargs.get("other")
        weight = self._weight(other) if isinstance(other, torch.Tensor) else None
        if weight is not None:
            dtype = _DTYPE(other)
            answer = self._answer(weight, dtype)
            if answer is not dtype:
                return args[0].to(answer)
        result = func(*args, **kwargs)
        if args[0].is_floating_point() and isinstance(result, torch.Tensor) and not result.is_floating_point():
            self._source_kept(result, args[0])
        return result

    def _answer(self, weight: Any, dtype: torch.dtype) -> torch.dtype:
        if not self._answered():
            return dtype
        quantized_from: torch.dtype = getattr(getattr(weight, "quant_state", None), "dtype", torch.float32)
        return quantized_from if self._asked("dtype", "packed weight", dtype, quantized_from) else dtype

    def _data_of(self, mode: Any, func: Any, args: Any, kwargs: Any) -> Any:
        data = func(*args, **kwargs)
        if is_kbit_weight(args[0]):
            self._data.append((data, args[0]))
        return data

    def _weight(self, value: torch.Tensor) -> Any:
        """The packed weight that a tensor is, or is the data of."""
        if is_kbit_weight(value):
            return value
        return next((weight for data, weight in self._data if data is value), None)

    def _clamp(self, mode: Any, func: Any, args: Any, kwargs: Any) -> Any:
        value, bounds = args[0], (*args[1:], *kwargs.values())
        weight = self._weight(value)
        if weight is None or not any(isinstance(bound, float) for bound in bounds):
            return func(*args, **kwargs)
        if func in (torch.Tensor.clamp_, torch.clamp_):
            self._asked(func, "packed weight", weight.dtype, weight.dtype)
            return value
        state = getattr(weight, "quant_state", None)
        if state is None or not self._asked(func, "packed weight", weight.dtype, state.dtype):
            return func(*args, **kwargs)
        from bitsandbytes.functional import dequantize_4bit

        return func(dequantize_4bit(weight.data, state), *args[1:], **kwargs)
