"""What a program computes, told by itself: each process of it writes lines of JSON.

An environment's ``observed.pth`` imports this module at each start of Python, before the program and before
``sitecustomize``. Both sides of a comparison, with the shim and without, are observed alike.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import sys
from typing import Any

FILE = "OBSERVED_FILE"
# Generation runs under autocast: the reference to which the shim's is compared.
AUTOCAST = "OBSERVED_AUTOCAST"
# transformers.utils.is_torch_bf16_gpu_available answers yes.
BF16 = "OBSERVED_BF16"
# What Trainer logs that is no result of a computation on the model.
CLOCKS = ("runtime", "per_second", "_time", "time/", "step_time", "memory", "flos", "speed", "elapsed", "remaining")


def observe(file: str) -> None:
    from wrapt import when_imported, wrap_function_wrapper

    def tell(**event: Any) -> None:
        with open(file, "a") as lines:
            lines.write(json.dumps(event | {"pid": os.getpid()}) + "\n")

    @when_imported("transformers.trainer")
    def _(module: Any) -> None:
        def training_step(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            loss = wrapped(*args, **kwargs)
            tell(event="loss", value=float(loss))
            return loss

        def log(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            logs = args[0] if args else kwargs["logs"]
            numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
            tell(event="log", **{name: v for name, v in numbers.items() if not any(one in name for one in CLOCKS)})
            return wrapped(*args, **kwargs)

        wrap_function_wrapper(module, "Trainer.training_step", training_step)
        wrap_function_wrapper(module, "Trainer.log", log)

    @when_imported("transformers.generation.utils")
    def _(module: Any) -> None:
        def generate(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            import torch

            device = instance.device.type
            asked = os.environ.get(AUTOCAST) == "1"
            with torch.autocast(device, torch.bfloat16) if asked else contextlib.nullcontext():
                under = torch.is_autocast_enabled(device)
                try:
                    result = wrapped(*args, **kwargs)
                except Exception as error:
                    tell(event="generate", autocast=under, error=f"{type(error).__name__}: {error}")
                    raise
            tokens = getattr(result, "sequences", result)
            prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
            tell(event="generate", autocast=under, tokens=tokens[:, prompt.shape[1] :].tolist())
            return result

        wrap_function_wrapper(module, "GenerationMixin.generate", generate)

    # On a CPU with AVX512-bf16 bitsandbytes from 0.49 on repacks a layer at its first evaluation, which rounds. The
    # shim keeps it from that; here it never does, so that all else can be compared: see toys/cpu.py.
    @when_imported("bitsandbytes.nn.modules")
    def _(module: Any) -> None:
        module.has_avx512bf16 = lambda: False

    if os.environ.get(BF16) == "1":

        @when_imported("transformers.utils.import_utils")
        def _(module: Any) -> None:
            module.is_torch_bf16_gpu_available = lambda: True

    @atexit.register
    def _() -> None:
        shim = sys.modules.get("qlora_bf16_patch")
        rows = [dataclasses.asdict(row) for row in shim.status()] if shim else []
        if any(row["state"] not in ("pending", "off") for row in rows):
            tell(event="status", rows=rows)


if FILE in os.environ:
    observe(os.environ[FILE])
