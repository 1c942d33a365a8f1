"""The report's callback, and the model that it is given (huggingface/peft#1515)."""

from __future__ import annotations

from typing import Any

from . import devices  # isort: skip  # before torch

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import TrainerCallback

from .llama import qlora_script, quantized

IDS = torch.arange(3, 9, device=devices.TYPE)[None]


def prepared(dtype: torch.dtype, checkpointing: bool | None = None) -> Any:
    """The QLoRA script's Llama, by ``--bf16`` or ``--fp16``: norms in float32, adapters and head in bfloat16.

    Args:
        dtype: of the script's option; in float16 head and adapters stay in float32, so that it runs.
        checkpointing: whether it is reentrant; None is none, and no preparation of PEFT's either.
    """
    torch.manual_seed(0)
    model: Any = quantized(dtype=dtype)
    if checkpointing is not None:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": checkpointing}
        )
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if dtype == torch.bfloat16:
        qlora_script(model)
    else:
        for name, module in model.named_modules():
            if any(part in name for part in ("norm", "lm_head", "embed_tokens")):
                module.float()
    return model


class GenerateAfterStep(TrainerCallback):
    """Generates three tokens after each step.

    Attributes:
        generated: shapes of what came out.
        failures: what was raised instead.
        losses: that were logged.
    """

    def __init__(self) -> None:
        self.generated: list[tuple[int, ...]] = []
        self.failures: list[str] = []
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                tokens = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
            self.generated.append(tuple(tokens.shape))
        except RuntimeError as error:
            self.failures.append(str(error))
        model.train(training)
