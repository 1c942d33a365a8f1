"""What PEFT reads of a k-bit layer after its forward: the bias and the quant state as bitsandbytes would leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack


class AsWritten(TorchFunctionMode):
    """Inside it, operations use a k-bit layer's bias and quant state as bitsandbytes would have left them.

    bitsandbytes writes to both in its forwards, and the shim keeps it from that (``untouched``, bitsandbytes.py). Some
    of PEFT's methods read them after the base layer's forward (peft 0.21.2: DoRA, BOFT and DEFT subtract the bias from
    its result, DoRA dequantizes the weight), and training would have other bits. Nothing is written: only the operand
    is replaced, in this thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.biases: dict[int, torch.Tensor] = {}  # by the parameter's id: the model holds it during the call
        self.dequantized: torch.dtype | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in args:
            if id(value) in self.biases and getattr(func, "__name__", "") not in ("__get__", "__set__"):  # as `.data`
                args = [self.biases.get(id(value), value) for value in args]
                break
        if self.dequantized is not None and func is torch.ops.bitsandbytes.dequantize_4bit.default:
            args = [*args[:-1], self.dequantized]
        return func(*args, **kwargs) if kwargs else func(*args)


def note_written(bias: Any, written: torch.Tensor | None, dequantized: torch.dtype | None) -> None:
    """Remember in the modes of this thread what bitsandbytes would have written.

    Args:
        bias: the layer's.
        written: the bias in another dtype; None where that is its own.
        dequantized: the quant state's dtype; None where that is its own.
    """
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if type(mode) is AsWritten:
            mode.dequantized = dequantized
            if written is not None:
                mode.biases[id(bias)] = written
