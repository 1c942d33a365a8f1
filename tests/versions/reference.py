"""Reference of the 4-bit operators of bitsandbytes before 0.46, whose own run on CUDA alone.

Only the kernels are replaced: quantization, dequantization and the product of one token. The layers, `matmul_4bit` with
its backward, `Params4bit`, the quant state and the 8-bit quantization of its scales are the release's own.
"""

from __future__ import annotations

from typing import Any

import torch
import wrapt
from torch.nn.functional import linear, pad

TOLD = (
    "Before 0.46 bitsandbytes has no 4-bit kernels for a CPU: its own Python (layers, autograd, state) runs over a "
    "reference of them in torch. 8-bit layers were not run."
)


def put_in_place() -> None:
    """Once bitsandbytes is imported, its 4-bit functions take tensors on a CPU."""
    wrapt.when_imported("bitsandbytes.functional")(_functions)
    wrapt.when_imported("bitsandbytes.nn.modules")(_parameters)
    wrapt.when_imported("bitsandbytes")(_features)


def _functions(module: Any) -> None:
    def quantize_4bit(
        A: torch.Tensor,
        absmax: Any = None,
        out: Any = None,
        blocksize: int = 64,
        compress_statistics: bool = False,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
    ) -> Any:
        code = module.get_4bit_type(quant_type, device="cpu").float()
        flat = A.detach().float().flatten()
        blocks = pad(flat, (0, -flat.numel() % blocksize)).view(-1, blocksize)
        scales = blocks.abs().amax(1)
        scaled = (blocks / scales.clamp_min(1e-30)[:, None]).flatten()[: flat.numel() + flat.numel() % 2]
        levels, order = code.sort()
        index = order[torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)].to(torch.uint8)
        packed = (index[::2] << 4 | index[1::2]).view(quant_storage)[:, None]
        rest: dict[str, Any] = {}
        if compress_statistics:
            rest["offset"] = scales.mean()
            scales, rest["state2"] = module.quantize_blockwise(scales - rest["offset"], blocksize=256)
        state = module.QuantState(
            absmax=scales, shape=A.shape, dtype=A.dtype, blocksize=blocksize, code=code, quant_type=quant_type, **rest
        )
        return packed, state

    def dequantize_4bit(A: torch.Tensor, quant_state: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        scales = quant_state.absmax
        if quant_state.nested:
            scales = module.dequantize_blockwise(scales, quant_state.state2) + quant_state.offset
        packed = A.detach().flatten().view(torch.uint8)
        index = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
        values = quant_state.code.float()[index][: quant_state.shape.numel()]
        values = values * scales.float().repeat_interleave(quant_state.blocksize)[: values.numel()]
        weight: torch.Tensor = values.to(quant_state.dtype).view(quant_state.shape)
        return weight.t() if A.shape[0] == 1 else weight

    def gemv_4bit(A: torch.Tensor, B: torch.Tensor, out: Any = None, *args: Any, state: Any = None) -> torch.Tensor:
        return linear(A, dequantize_4bit(B, state).to(A.dtype))

    module.quantize_4bit, module.dequantize_4bit, module.gemv_4bit = quantize_4bit, dequantize_4bit, gemv_4bit


def _parameters(module: Any) -> None:
    """`Params4bit.to` quantizes at the way to a GPU; from 0.46 on, at the way to any device."""
    original = module.Params4bit.to

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu" and not self.bnb_quantized and self.is_floating_point():
            return self._quantize(device)
        return original(self, *args, **kwargs)

    module.Params4bit.to = to


def _features(module: Any) -> None:
    """What accelerate and transformers ask before they let a model in 4 bits train on a CPU."""
    module.features = {"multi_backend"}
    module.supported_torch_devices = {"cpu"}
