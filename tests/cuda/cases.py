"""What is run on the emulated device: ``python -m tests.cuda.cases GROUP`` prints a line of JSON for each case."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

import qlora_bf16_patch  # noqa: F401  # before torch, as a user does

from . import emulated  # isort: skip  # before torch

import torch

from ..toys import BF16, F32, LORA_VARIANTS, Device, methods, recipes
from ..training.steps import Call, Verdict, as_under_autocast, calls, evaluation_verdict, option_verdict, train, verdict
from . import checks

CUDA = Device("cuda", emulated.cuda, lambda tensor: tensor.cpu_data)


def emulator() -> Iterator[tuple[str, Verdict]]:
    """Whether the emulated device is worth its name."""
    for name, check in vars(checks).items():
        if name.startswith("check_"):
            detail = ""
            try:
                check()
            except Exception as error:
                detail = f"{type(error).__name__}: {error}"
            yield name, Verdict(name, "wrong" if detail else "same", detail)


def lora() -> Iterator[tuple[str, Verdict]]:
    """LoRA's training steps."""
    for bits in (4, 8):
        for variant in LORA_VARIANTS:
            for recipe in recipes("LORA", bits, variant=variant, dropout=0.05):
                model = emulated.cuda(recipe.build())
                for call in calls():
                    yield f"LORA-{bits}-{variant}", verdict(model, recipe, call, CUDA)
        for recipe in recipes("LORA", bits, variant="plain", dropout=0.05, head=BF16):
            model = emulated.cuda(recipe.build())
            for call in calls(["none", "reentrant", "whole"]):
                yield f"LORA-{bits}-head", verdict(model, recipe, call, CUDA)


def others() -> Iterator[tuple[str, Verdict]]:
    """The training steps of PEFT's other methods."""
    for method, bits in methods():
        for recipe in recipes(method, bits) if method != "LORA" else ():
            if recipe.dropout or not recipe.dropouts():
                model = emulated.cuda(recipe.build())
                for call in calls(["none", "reentrant"]):
                    yield f"{method}-{bits}", verdict(model, recipe, call, CUDA)


def evaluation() -> Iterator[tuple[str, Verdict]]:
    """Evaluations after training outside of autocast, after training under it, and with the option."""
    for method, bits in methods():
        for recipe in recipes(method, bits, dropout=0.0, compute_dtype=BF16):
            model = emulated.cuda(recipe.build())
            for dtype in (F32, BF16):
                yield f"outside-{method}-{bits}", evaluation_verdict(model, recipe, Call(dtype, autocast=False), CUDA)
            train(model, Call(BF16), CUDA)
            for dtype in (F32, BF16) if bits == 4 else (BF16,):
                yield f"under-{method}-{bits}", as_under_autocast(model, recipe, dtype, CUDA)
            layer = model.get_base_model().proj
            for dtype in (F32, BF16):
                yield f"option-{method}-{bits}", option_verdict(layer, f"{recipe}; {dtype}", CUDA.input(dtype), CUDA)


GROUPS: dict[str, Callable[[], Iterator[tuple[str, Verdict]]]] = {
    function.__name__: function for function in (emulator, lora, others, evaluation)
}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PEFT's advice on a method's options, at every toy
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for group in sys.argv[1:]:
        with emulated.device(), contextlib.redirect_stdout(sys.stderr):
            rows = list(GROUPS[group]())
        for test, row in rows:
            print(json.dumps([group, test, dataclasses.asdict(row)]))


if __name__ == "__main__":
    main()
