"""What is measured: calls of patched layers, generation, training steps, and the import."""

from __future__ import annotations

import copy
import functools
import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import IA3Config, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

from toys import devices
from toys.conditions import CONDITIONS
from toys.llama import Shape, generate, llama, step

from .measure import Run, clocked

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYER_CONDITIONS = ("unpatched", "off", "shim", "autocast")
Row = tuple[str, dict[str, Run]]


class Layers(nn.Module):
    """A 4- or 8-bit layer for an adapter, one without, and a bf16 head, of one width."""

    def __init__(self, width: int, bits: int = 4) -> None:
        super().__init__()
        self.is_loaded_in_4bit, self.is_loaded_in_8bit = bits == 4, bits == 8
        if bits == 4:
            make: Any = functools.partial(Linear4bit, compute_dtype=torch.bfloat16, quant_type="nf4")
        else:
            make = functools.partial(Linear8bitLt, has_fp16_weights=False)
        self.proj, self.plain = (make(width, width, bias=False).to(devices.TYPE) for _ in range(2))
        self.lm_head = nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device=devices.TYPE)


LORA = LoraConfig(r=16, target_modules=["proj"], init_lora_weights=False)
ADAPTERS: dict[str, tuple[int, PeftConfig]] = {
    "LoRA on 4 bits": (4, LORA),
    "LoRA on 8 bits": (8, LORA),
    "VeRA on 4 bits": (4, VeraConfig(target_modules=["proj"], init_weights=False)),
    "IA3 on 4 bits": (4, IA3Config(target_modules=["proj"], feedforward_modules=[])),
}


def layers(widths: list[int]) -> Iterator[Row]:
    """One call of each layer, without gradients. The floor is the layer whose adapter and input are in bf16."""
    for width, tokens, given in itertools.product(widths, (1, 512), DTYPES):
        torch.manual_seed(0)
        x = torch.randn(1, tokens, width, device=devices.TYPE, dtype=DTYPES[given])
        about = f"{width} wide, {tokens} tokens, {given}"
        for name, (bits, config) in ADAPTERS.items():
            model = get_peft_model(Layers(width, bits), config).eval().base_model.model
            agreeing = get_peft_model(Layers(width, bits), config, autocast_adapter_dtype=False).eval()
            agreeing = agreeing.base_model.model.to(torch.bfloat16)
            yield f"{name}, {about}", with_floor(model.proj, agreeing.proj, x)
            if config is LORA:
                yield f"{bits}-bit layer, {about}", with_floor(model.plain, agreeing.plain, x)
            if name == "LoRA on 4 bits":
                yield f"lm_head, {about}", with_floor(model.lm_head, agreeing.lm_head, x)
        heads = x.view(1, tokens, width // 64, 64).transpose(1, 2)
        attention = functools.partial(nn.functional.scaled_dot_product_attention, heads, heads)
        yield f"attention, {about}", same(without_gradients(attention, heads), LAYER_CONDITIONS)
        unmarked = nn.Linear(width, width, bias=False, dtype=DTYPES[given], device=devices.TYPE)
        yield f"unmarked linear, {about}", same(without_gradients(unmarked, x), ("unpatched", "off", "shim"))


def with_floor(layer: nn.Module, agreeing: nn.Module, x: torch.Tensor) -> dict[str, Run]:
    floor = without_gradients(agreeing, x.bfloat16())
    return {**same(without_gradients(layer, x), LAYER_CONDITIONS), "floor": floor}


def generation(shape: Shape, tokens: int, batches: list[int], contexts: list[int]) -> Iterator[Row]:
    """``generate()`` of ``tokens`` tokens, by recipe; the floor is the plain recipe's model."""
    floor = llama(shape, "agreeing").eval()
    for recipe in ("plain", "kbit", "qlora"):
        model = llama(shape, recipe).eval()
        for batch, context in itertools.product(batches, contexts):
            ids = torch.randint(3, shape.vocabulary, (batch, context), device=devices.TYPE)
            runs = same(functools.partial(generate, model, ids, tokens), tuple(CONDITIONS))
            runs["floor"] = functools.partial(generate, floor, ids, tokens)
            yield f"generate {tokens} tokens, {recipe}, batch {batch}, context {context}, {shape.layers} layers", runs


def generated(row: str) -> int:
    """How many tokens a call of a row of :func:`generation` makes, by its name; 0 for other rows."""
    found = re.match(r"generate (\d+) tokens, .*batch (\d+)", row)
    return int(found[1]) * int(found[2]) if found else 0


def tokens(shapes: list[Shape]) -> Iterator[Row]:
    """One token after 16, by recipe: what a decoding loop calls. The floor is the model with everything in bf16."""
    for shape, recipe in itertools.product(shapes, ("agreeing", "plain", "kbit", "qlora")):
        runs = same(one_token(llama(shape, recipe).eval()), ("unpatched", "off", "watching", "shim", "autocast"))
        runs["floor"] = one_token(llama(shape, "agreeing").eval())
        yield f"one token, {recipe}, {shape.layers} layers of width {shape.width}", runs


def one_token(model: Any) -> Run:
    ids = torch.randint(3, 300, (1, 16), device=devices.TYPE)
    caches: dict[bool, DynamicCache] = {}

    @torch.no_grad()
    def run() -> None:
        # Outside of autocast the states have another dtype: a cache for each.
        autocast = torch.is_autocast_enabled(devices.TYPE)
        if autocast not in caches:
            caches[autocast] = DynamicCache(config=model.config)
            model(ids, past_key_values=caches[autocast])
        model(ids[:, :1], past_key_values=caches[autocast])
        caches[autocast].crop(-1)

    return run


def first_calls(shapes: list[Shape], rounds: int) -> dict[str, float]:
    """How many times as long the first call of a kind takes as the second, the median, by call and model."""
    ids = torch.randint(3, 300, (1, 16), device=devices.TYPE)
    calls: dict[str, Callable[[Any], Any]] = {
        "forward": torch.no_grad()(lambda model: model(ids, use_cache=False)),
        "prompt with a cache": torch.no_grad()(
            lambda model: model(ids, past_key_values=DynamicCache(config=model.config))
        ),
        "training step": lambda model: step(model.train(), ids),
    }
    ratios = {}
    for shape, (name, call) in itertools.product(shapes, calls.items()):
        model, found = llama(shape, "qlora").eval(), []
        for _ in range(rounds):
            fresh = copy.deepcopy(model)  # no call of it was seen
            first, second = (clocked(functools.partial(call, fresh)) for _ in range(2))
            found.append(first / second)
        ratios[f"{name}, {shape.layers} layers of width {shape.width}"] = statistics.median(found)
    return ratios


def training(shape: Shape, tokens: int) -> Iterator[Row]:
    """A step in bfloat16 autocast, as Trainer makes it."""
    ids = torch.randint(3, shape.vocabulary, (1, tokens), device=devices.TYPE)
    for recipe in ("plain", "qlora"):
        for checkpointing in (False, True):
            model = llama(shape, recipe).train()
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            about = "with" if checkpointing else "without"
            runs = same(functools.partial(step, model, ids), ("unpatched", "off", "shim"))
            yield f"training step of {tokens} tokens, {recipe}, {about} checkpointing, {shape.layers} layers", runs


def same(run: Run, conditions: tuple[str, ...]) -> dict[str, Run]:
    return dict.fromkeys(conditions, run)


def without_gradients(layer: Callable[..., Any], x: torch.Tensor) -> Run:
    return torch.no_grad()(functools.partial(layer, x))


def imports(rounds: int) -> dict[str, float]:
    """Median seconds of an import in a fresh interpreter, less an empty one's."""
    statements = {"empty": "pass", "wrapt": "import wrapt", "qlora_bf16_patch": "import qlora_bf16_patch"}
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            times[name].append(time.perf_counter() - start)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    return {name: medians[name] - medians["empty"] for name in ("wrapt", "qlora_bf16_patch")}
