"""What is run on one gloo rank: ``python -m tests.distributed.scenarios NAME`` prints a line of JSON for each name."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import qlora_bf16_patch  # isort: skip  # before torch, as a user does

import torch
import torch.distributed as dist
import transformers
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from toys.layers import BF16, F32, SIZE, kbit

IDS = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 128, "hidden_size": SIZE, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0}
GEMMA3N = {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95, 0.0], "laurel_rank": 16}
GEMMA3N |= {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 128, "layer_types": ["full_attention"] * 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "doge": lambda: transformers.DogeConfig(**SIZES),
    "gemma3n": lambda: transformers.Gemma3nTextConfig(**SIZES | GEMMA3N),
}
ALTUP = ["correction_coefs", "prediction_coefs"]  # whose weights Gemma3n clamps in training


def transformer(name: str, storage: torch.dtype = BF16, kept: list[str] | None = None) -> nn.Module:
    """A toy of transformers in 4 bits with LoRA and norms in float32, in training, with gradient checkpointing."""
    config = CONFIGS[name]()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=BF16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_quant_storage=storage,
        llm_int8_skip_modules=["lm_head", "modality_router", *(kept or [])],
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=BF16).save_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization, dtype=BF16, device_map={"": "cpu"}
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for path, module in model.named_modules():
        if "norm" in path.rpartition(".")[2]:
            module.to(F32)
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # see toys/cpu.py
    return model.train()


def losses(model: nn.Module, steps: int = 2) -> list[float]:
    """Of optimizer steps under autocast."""
    found = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        with torch.autocast("cpu", BF16):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def outcomes(model: nn.Module, **inputs: Any) -> dict[str, str]:
    """What an evaluation outside of autocast comes to without and with the shim: a dtype, or the error."""
    found = {}
    for name, block in (("unpatched", qlora_bf16_patch.disabled()), ("patched", contextlib.nullcontext())):
        try:
            with block, torch.no_grad():
                output = model(**inputs) if inputs else model(torch.randn(2, SIZE))
            found[name] = str(getattr(output, "logits", output).dtype)
        except RuntimeError as error:
            found[name] = f"RuntimeError: {error}"
    return found


def sharded(model: Any) -> Any:
    """The model with FSDP2 around each layer and the whole."""
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2(name: str) -> dict[str, Any]:
    """Losses of a checkpointed model without FSDP, with FSDP2, and with FSDP2 and the shim."""
    with qlora_bf16_patch.disabled():
        alone = losses(transformer(name, kept=ALTUP))
        unpatched = losses(sharded(transformer(name, kept=ALTUP)))
    model = sharded(transformer(name, kept=ALTUP))
    patched = losses(model)
    found = {"alone": alone, "unpatched": unpatched, "patched": patched}
    return found | {f"evaluation {name}": text for name, text in outcomes(model.eval(), input_ids=IDS).items()}


class Router(nn.Module):
    """A mixture of experts' router in the style of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, SIZE).to(BF16), requires_grad=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden_states, self.weight).softmax(-1)


class Routed(nn.Module):
    """A k-bit layer and a router that is given float32."""

    is_loaded_in_4bit = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj, self.router = kbit(4, bias=BF16, quant_storage=BF16), Router()
        self.proj.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(self.proj(x).float())


def adapted(model: nn.Module) -> nn.Module:
    config = LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False)
    return get_peft_model(model, config, autocast_adapter_dtype=False).to(BF16).eval()


def fsdp1(guarded: bool) -> dict[str, str]:
    """A router whose weight FSDP1 flattens: a plain attribute while the forward runs."""
    model = Routed().eval() if guarded else adapted(Routed())
    # As PEFT's fsdp_auto_wrap_policy does, what is trained is flattened apart from what is frozen.
    policy = ModuleWrapPolicy({Router, nn.Linear})
    model = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=False, device_id=torch.device("cpu")
    )
    return outcomes(qlora_bf16_patch.guard(model) if guarded else model)


def zero3() -> dict[str, str]:
    """A model without PEFT whose parameters are partitioned when it comes under guard."""
    model = Routed().eval()
    for module in model.modules():
        partition(module)
    assert all(parameter.shape == (0,) for parameter in model.parameters())
    found = outcomes(qlora_bf16_patch.guard(model))
    assert all(parameter.shape == (0,) for parameter in model.parameters())
    return found


def deepspeed_zero3() -> dict[str, str]:
    """The same with the real one."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import deepspeed

    model = Routed().eval()
    model.router.weight.requires_grad_()
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    options = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD([model.router.weight]),
        config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage, **options},
    )
    assert all(parameter.shape == (0,) for parameter in model.parameters())
    return outcomes(qlora_bf16_patch.guard(engine))


def partition(module: nn.Module) -> None:
    """As ZeRO-3 does: outside of a module's forward its own parameters have no data.

    Source: deepspeed/runtime/zero/partition_parameters.py and parameter_offload.py, 0.19.8.
    """
    whole = {parameter: parameter.data for parameter in module._parameters.values() if parameter is not None}

    def gather(*_: Any) -> None:
        for parameter, data in whole.items():
            parameter.data = data

    def release(*_: Any) -> None:
        for parameter, data in whole.items():
            parameter.data = torch.empty(0, dtype=data.dtype)

    for parameter, data in whole.items():
        parameter.ds_shape = data.shape
    module.register_forward_pre_hook(gather)
    module.register_forward_hook(release, always_call=True)
    release()


def quant_storage(storage: torch.dtype) -> dict[str, Any]:
    """Losses of Gemma3n with its clamped weights in 4 bits, and whether a step leaves those weights as they were."""
    model = transformer("gemma3n", storage)
    clamped = {path: module.weight for path, module in model.named_modules() if path.endswith(tuple(ALTUP))}
    before = {path: weight.data.view(torch.uint8).clone() for path, weight in clamped.items()}
    found = losses(model)
    same = all(torch.equal(weight.data.view(torch.uint8), before[path]) for path, weight in clamped.items())
    dtypes = sorted({str(weight.dtype) for weight in clamped.values()})
    return {"losses": found, "unchanged": same, "dtypes": dtypes, "clamped": len(clamped)}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "fsdp2 doge": functools.partial(fsdp2, "doge"),
    "fsdp2 gemma3n": functools.partial(fsdp2, "gemma3n"),
    "fsdp1 injected": functools.partial(fsdp1, guarded=False),
    "fsdp1 guarded": functools.partial(fsdp1, guarded=True),
    "zero3": zero3,
    "deepspeed zero3": deepspeed_zero3,
    "storage uint8": functools.partial(quant_storage, torch.uint8),
    "storage bfloat16": functools.partial(quant_storage, BF16),
}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for name in sys.argv[1:]:
        try:
            found = SCENARIOS[name]()
        except Exception as error:
            found = {"raised": f"{type(error).__name__}: {error}"}
        print(json.dumps([name, found]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
