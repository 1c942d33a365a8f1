"""What is measured: calls of patched layers, generation, training steps, and the import."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from torch import nn

from .measure import CONDITIONS, Run
from .models import Shape, llama

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYER_CONDITIONS = ("unpatched", "off", "shim", "autocast")
Row = tuple[str, dict[str, Run]]


class Layers(nn.Module):
    """A 4-bit layer for LoRA, one without, and a bf16 head, of one width."""

    is_loaded_in_4bit = True

    def __init__(self, width: int) -> None:
        super().__init__()
        make = functools.partial(Linear4bit, width, width, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        self.proj, self.plain = make().to(DEVICE), make().to(DEVICE)
        self.lm_head = nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device=DEVICE)


def layers(widths: list[int]) -> Iterator[Row]:
    """One call of each layer, without gradients; the floor's adapters and input are in bf16."""
    for width in widths:
        torch.manual_seed(0)
        config = LoraConfig(r=16, target_modules=["proj"], init_lora_weights=False)
        model = get_peft_model(Layers(width), config).eval().base_model.model
        agreeing = get_peft_model(Layers(width), config, autocast_adapter_dtype=False).eval().base_model.model
        agreeing.to(torch.bfloat16)
        unmarked = nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device=DEVICE)
        for tokens in (1, 512):
            for given, dtype in DTYPES.items():
                x = torch.randn(1, tokens, width, device=DEVICE, dtype=dtype)
                about = f"{width} wide, {tokens} tokens, {given}"
                for kind, name in (("lora", "proj"), ("4-bit", "plain"), ("lm_head", "lm_head")):
                    runs = same(without_gradients(getattr(model, name), x), LAYER_CONDITIONS)
                    runs["floor"] = without_gradients(getattr(agreeing, name), x.bfloat16())
                    yield f"{kind}, {about}", runs
                if given == "bf16":
                    runs = same(without_gradients(unmarked, x), ("unpatched", "off", "shim"))
                    yield f"unmarked linear, {about}", runs


def others() -> Iterator[Row]:
    """One call of a layer of another method, and of an 8-bit one, at batch 1; the methods run in autocast's region."""
    vera = VeraConfig(target_modules=["proj"], init_weights=False)
    for name, bits, config in (
        ("VeRA", 4, vera),
        ("IA3", 4, IA3Config(target_modules=["proj"], feedforward_modules=[])),
        ("VeRA", 8, vera),
        ("LoRA", 8, LoraConfig(r=16, target_modules=["proj"], init_lora_weights=False)),
    ):
        for width in (64, 512):
            layer = get_peft_model(Other(bits, width), config).eval().base_model.model.proj
            x = torch.randn(1, 1, width, device=DEVICE, dtype=torch.bfloat16)
            yield f"{name} on {bits} bits, {width} wide, bf16", same(without_gradients(layer, x), LAYER_CONDITIONS)


class Other(nn.Module):
    """A 4- or 8-bit layer."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.is_loaded_in_4bit, self.is_loaded_in_8bit = bits == 4, bits == 8
        if bits == 4:
            self.proj = Linear4bit(width, width, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to(DEVICE)
        else:
            self.proj = Linear8bitLt(width, width, bias=False, has_fp16_weights=False).to(DEVICE)


def generation(shape: Shape, tokens: int, batches: list[int], contexts: list[int]) -> Iterator[Row]:
    """``generate()`` of ``tokens`` tokens, by recipe; the floor is the plain recipe's model."""
    for batch in batches:
        for context in contexts:
            ids = torch.randint(3, shape.vocabulary, (batch, context), device=DEVICE)
            for recipe in ("plain", "kbit", "qlora"):
                run = functools.partial(generate, llama(shape, recipe).eval(), ids, tokens)
                runs = same(run, tuple(CONDITIONS))
                runs["floor"] = functools.partial(generate, llama(shape, "agreeing").eval(), ids, tokens)
                yield f"generate {tokens} tokens, {recipe}, batch {batch}, context {context}", runs


def generated(row: str) -> int:
    """How many tokens a call of a row of :func:`generation` makes, by its name; 0 for other rows."""
    found = re.match(r"generate (\d+) tokens, .*batch (\d+)", row)
    return int(found[1]) * int(found[2]) if found else 0


def training(shape: Shape, tokens: int) -> Iterator[Row]:
    """A step in bfloat16 autocast, as Trainer makes it."""
    ids = torch.randint(3, shape.vocabulary, (1, tokens), device=DEVICE)
    for recipe in ("plain", "qlora"):
        for checkpointing in (False, True):
            model = llama(shape, recipe).train()
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            about = "with" if checkpointing else "without"
            runs = same(functools.partial(step, model, ids), ("unpatched", "off", "shim"))
            yield f"training step of {tokens} tokens, {recipe}, {about} checkpointing", runs


def same(run: Run, conditions: tuple[str, ...]) -> dict[str, Run]:
    return dict.fromkeys(conditions, run)


def without_gradients(layer: Callable[..., Any], x: torch.Tensor) -> Run:
    return torch.no_grad()(functools.partial(layer, x))


def generate(model: Any, ids: torch.Tensor, tokens: int) -> Any:
    return model.generate(input_ids=ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0)


def step(model: Any, ids: torch.Tensor) -> None:
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad()


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
