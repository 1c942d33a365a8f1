"""Trainable parameters that a GradScaler refuses.

Of float16 gradients it raises "Attempting to unscale FP16 gradients" (torch/amp/grad_scaler.py, _unscale_grads_, torch
2.13.0). On CUDA its kernel is not there for bfloat16 (aten/src/ATen/native/cuda/AmpKernels.cu, dispatched for floating
types and half: "_amp_foreach_non_finite_check_and_unscale_cuda" not implemented for 'BFloat16'); on a CPU it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...numerics.dtypes import HALF
from ..advice import advice
from ..dtypes import short
from .finding import Finding, Looked

_REFUSES = {
    torch.float16: "a GradScaler (fp16=True in a Trainer) raises: Attempting to unscale FP16 gradients",
    torch.bfloat16: "a GradScaler (fp16=True in a Trainer) raises on CUDA: "
    "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'",
}


def find(looked: Looked) -> Iterator[Finding]:
    for path, module in looked.model.named_modules():
        trained = {one.dtype for one in module._parameters.values() if one is not None and one.requires_grad}
        for dtype in HALF:
            if dtype in trained:
                what, say = f"its trainable parameters are {short(dtype)}", advice("GradScaler", looked.program)
                yield Finding(path, type(module).__name__, "GradScaler", what, _REFUSES[dtype], say)
