"""``peft.lora.*`` and ``peft.tuners``."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .promise import ALWAYS, Promise
from .toys import adapted, device, hidden_states, lora


def lora4bit() -> tuple[Promise, ...]:
    as_trained = functools.partial(_as_trained, functools.partial(lora, 4))
    return (Promise("evaluates outside of autocast as it trained", as_trained), *_lora(4))


def lora8bit() -> tuple[Promise, ...]:
    """On a CPU an 8-bit layer's training has a path of its own, so evaluation is held against itself under autocast."""
    alike = functools.partial(_as_under_autocast, functools.partial(lora, 8))
    return (Promise("evaluates outside of autocast as under it", alike), *_lora(8))


def tuners() -> tuple[Promise, ...]:
    """Of two methods: one that mismatches, and one that another dtype leaks out of (peft 0.21.2)."""
    return (
        Promise("evaluates VeRA outside of autocast as it trained", functools.partial(_as_trained, vera)),
        Promise("gives back the input's dtype from IA3", functools.partial(_gives_back, ia3)),
    )


def _lora(bits: int) -> tuple[Promise, ...]:
    made = functools.partial(lora, bits)
    return (
        Promise("gives back the input's dtype", functools.partial(_gives_back, made), kept_from=ALWAYS),
        Promise("takes an adapter whose matrices differ in dtype", functools.partial(_takes_two_dtypes, made)),
    )


def vera() -> Any:
    from peft import VeraConfig

    return adapted(4, VeraConfig(r=4, target_modules=["proj"]))


def ia3() -> Any:
    from peft import IA3Config

    return adapted(4, IA3Config(target_modules=["proj"], feedforward_modules=[]))


def _as_trained(made: Any) -> bool:
    model, x = made(), hidden_states()
    with torch.autocast(device(), torch.bfloat16):
        trained = model.train()(x)
    with torch.no_grad():
        evaluated = model.eval()(x)
    return evaluated.dtype == x.dtype and torch.equal(evaluated, trained.to(x.dtype))


def _as_under_autocast(made: Any) -> bool:
    model, x = made(), hidden_states(torch.bfloat16)
    with torch.no_grad():
        with torch.autocast(device(), torch.bfloat16):
            under = model(x)
        return torch.equal(model(x), under)


def _gives_back(made: Any) -> bool:
    model = made()
    with torch.no_grad():
        return all(model(hidden_states(dtype)).dtype == dtype for dtype in (torch.float32, torch.bfloat16))


def _takes_two_dtypes(made: Any) -> bool:
    model = made()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data.bfloat16()
    with torch.no_grad():
        return bool(model(hidden_states()).isfinite().all())
