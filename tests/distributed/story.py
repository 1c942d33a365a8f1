"""What each rank puts an engine through: training under autocast; evaluation, generation, states."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from toys import cpu  # noqa: F401
from toys.layers import BF16, F32, SIZE

from .engines import CHECKPOINTED
from .engines import engine as engine_of
from .engines.base import Engine, Tensors

PROMPT = torch.arange(3, 9)[None]


def qlora(folder: Path, layers: int = 2, checkpointed: bool = False) -> nn.Module:
    """A Llama in 4 bits as the QLoRA script leaves it, in training: norms in float32, adapters and head in bfloat16.

    Args:
        folder: one that all ranks share; what the weights are quantized from is written there once.
        layers: of the Llama.
        checkpointed: whether activations are.
    """
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=SIZE,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=0,
    )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=BF16, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=BF16
    )
    weights = folder / f"llama-{layers}"
    if dist.get_rank() == 0 and not weights.exists():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=BF16).save_pretrained(weights)
    dist.barrier()
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights, quantization_config=quantization, dtype=BF16, device_map={"": "cpu"}
    )
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(0)
    options = {"init_lora_weights": False, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options)).to(BF16)
    for path, module in model.named_modules():
        if "norm" in path.rpartition(".")[2]:
            module.to(F32)
    return model.train()  # type: ignore[no-any-return]


def run(name: str, folder: Path) -> dict[str, Any]:
    """What a rank finds of an engine.

    Returns:
        Losses of three steps on data of its own; hashes of the state dict, of the adapters in it and of the rank's
        shards; then the evaluation and the generation, each a value or an error. With the shim these are there a second
        time, from before the third step, and whether the last ones have left the state dict as it was.
    """
    kind, checkpointed = engine_of(name.removesuffix(CHECKPOINTED)), name.endswith(CHECKPOINTED)
    layers = 1 if name.startswith("compiled") else 2  # Dynamo's time

    def made() -> Engine:
        engine: Engine = kind(qlora(folder, layers, checkpointed))
        return engine

    patched = os.environ["QLORA_BF16_PATCH"] != "0"
    engine = made()
    torch.manual_seed(1)  # of dropout
    found: dict[str, Any] = {"losses": [engine.step(_batch(0)), engine.step(_batch(1))]}
    if patched:
        found["before the last step"] = {"evaluation": _evaluation(engine), "generation": _generation(engine)}
        engine.model.train()
    found["losses"].append(engine.step(_batch(2)))
    state = engine.full()
    found["state dict"], found["entries"] = hashed(state), len(state)
    found["adapters"] = hashed({name: value for name, value in state.items() if "lora_" in name})
    found["shards"] = hashed(engine.shards())
    found["evaluation"] = _evaluation(engine)
    # A forward that has failed leaves FSDP1 in the middle of it.
    found["generation"] = _generation(engine if patched else made())
    if patched:
        found["unchanged"] = hashed(engine.full()) == found["state dict"]
    return found


def hashed(tensors: Tensors) -> str:
    """Of names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _batch(step: int) -> torch.Tensor:
    """Another one on each rank."""
    seed = 10 * dist.get_rank() + step
    return torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(seed))


def _evaluation(engine: Engine) -> dict[str, Any]:
    return _outcome(engine, lambda: hashed({"": engine.evaluate(PROMPT)}))


def _generation(engine: Engine) -> dict[str, Any]:
    options = {"max_new_tokens": 4, "do_sample": False}
    return _outcome(engine, lambda: engine.generate(input_ids=PROMPT, **options)[0].tolist())


@torch.no_grad()
def _outcome(engine: Engine, call: Callable[[], Any]) -> dict[str, Any]:
    engine.model.eval()
    try:
        return {"value": call()}
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0]}
