"""``bitsandbytes.linear4bit`` and ``.linear8bit``."""

from __future__ import annotations

import functools

import torch

from .promise import ALWAYS, Promise
from .toys import hidden_states, layer


def linear4bit() -> tuple[Promise, ...]:
    return (
        # Merged for HPUs as #1623, which reports it, and for all as a part of bitsandbytes#1662.
        Promise("keeps the configured compute dtype", _keeps_compute_dtype, kept_from="0.47"),
        Promise("gives back the input's dtype", functools.partial(_gives_back, 4), kept_from=ALWAYS),
        Promise("leaves the bias as it is", functools.partial(_leaves_bias, 4)),
        Promise(
            "leaves the packed weight and its scales as they are",
            _leaves_weight,
            broken_on="a CPU with AVX512-bf16, since bitsandbytes 0.49",  # bitsandbytes#1804 repacks it
        ),
        Promise("refuses activations that were cast to bytes", _refuses_bytes),
    )


def linear8bit() -> tuple[Promise, ...]:
    return (
        Promise("gives back the input's dtype", functools.partial(_gives_back, 8), kept_from=ALWAYS),
        Promise("leaves the bias as it is", functools.partial(_leaves_bias, 8)),
    )


def _keeps_compute_dtype() -> bool:
    made = layer(4)
    made(hidden_states(torch.float32))
    return made.compute_dtype == torch.bfloat16  # type: ignore[no-any-return]


def _gives_back(bits: int) -> bool:
    made = layer(bits).eval()
    with torch.no_grad():
        return all(made(hidden_states(dtype)).dtype == dtype for dtype in (torch.float32, torch.bfloat16))


def _leaves_bias(bits: int) -> bool:
    made = layer(bits)
    before = made.bias.data.clone()
    made(hidden_states(torch.bfloat16))
    made(hidden_states(torch.float32))
    return made.bias.dtype == before.dtype and torch.equal(made.bias, before)


def _leaves_weight() -> bool:
    made = layer(4).eval()
    state = made.weight.quant_state
    before = state.dtype, state.absmax.clone(), made.weight.data.clone()
    with torch.no_grad():
        made(hidden_states(torch.float32))
    state = made.weight.quant_state
    dtype, *tensors = before
    after = state.absmax, made.weight.data
    return state.dtype == dtype and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(tensors, after, strict=True)
    )


def _refuses_bytes() -> bool:
    made = layer(4)
    try:
        made(hidden_states().to(torch.uint8))
    except TypeError:
        return True
    return False
