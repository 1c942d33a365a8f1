"""The catalogue. A new patch is one file in this folder and one entry here."""

from __future__ import annotations

from typing import Any

from ..engine.patch import Patch
from .versions import gate

_BNB: dict[str, Any] = {"module": "bitsandbytes.nn.modules", **gate("bitsandbytes")}
_LORA: dict[str, Any] = {"module": "peft.tuners.lora.bnb", **gate("peft")}
# Not peft.tuners.lora.bnb: that is imported inside the first injection, too late to see it.
_INJECTION: dict[str, Any] = {
    "module": "peft.tuners.tuners_utils",
    "attribute": "BaseTuner.inject_adapter",
    **gate("peft"),
}


CATALOGUE: tuple[Patch, ...] = (
    Patch(
        name="bitsandbytes.linear4bit",
        attribute="Linear4bit.forward",
        load="qlora_bf16_patch.patches.linear4bit:forward",
        promises="qlora_bf16_patch.defects.layers:linear4bit",
        summary="4-bit layers compute in their configured dtype, give back the input's, and never write to the bias",
        reports=("bitsandbytes-foundation/bitsandbytes#1623",),
        pull_requests=("bitsandbytes-foundation/bitsandbytes#1623", "bitsandbytes-foundation/bitsandbytes#1662"),
        **_BNB,
    ),
    Patch(
        name="bitsandbytes.linear8bit",
        attribute="Linear8bitLt.forward",
        load="qlora_bf16_patch.patches.linear8bit:forward",
        promises="qlora_bf16_patch.defects.layers:linear8bit",
        summary="8-bit layers give back the input's dtype outside of autocast, and never write to the bias",
        reports=("huggingface/peft#101", "huggingface/peft#874"),
        **_BNB,
    ),
    Patch(
        name="peft.lora.linear4bit",
        attribute="Linear4bit.forward",
        load="qlora_bf16_patch.patches.lora:forward",
        promises="qlora_bf16_patch.defects.adapters:lora4bit",
        summary="LoRA on 4-bit layers evaluates outside of autocast as it trained, and gives back the input's dtype",
        reports=("huggingface/peft#1515", "huggingface/peft#1172"),
        pull_requests=("huggingface/peft#2893",),
        **_LORA,
    ),
    Patch(
        name="peft.lora.linear8bit",
        attribute="Linear8bitLt.forward",
        load="qlora_bf16_patch.patches.lora:forward",
        promises="qlora_bf16_patch.defects.adapters:lora8bit",
        summary="LoRA on 8-bit layers evaluates outside of autocast as it trained, and gives back the input's dtype",
        reports=("huggingface/peft#101", "huggingface/peft#874"),
        pull_requests=("huggingface/peft#121", "huggingface/peft#874"),
        **_LORA,
    ),
    Patch(
        name="peft.tuners",
        load="qlora_bf16_patch.patches.tuners:inject_adapter",
        promises="qlora_bf16_patch.defects.adapters:tuners",
        summary="PEFT's other methods on 4- and 8-bit layers evaluate as they trained, and give back the input's dtype",
        pull_requests=("huggingface/peft#1634", "huggingface/peft#2433"),
        **_INJECTION,
    ),
    Patch(
        name="peft.boundary",
        module="peft.peft_model",
        attribute=("peft.tuners.tuners_utils:BaseTuner.inject_adapter", "PeftModel.add_adapter"),
        load="qlora_bf16_patch.patches.boundary:take_in_after",
        promises="qlora_bf16_patch.defects.models:boundary",
        summary="all else in a k-bit model, attention included, takes operands of different floating dtypes",
        **gate("peft"),
        reports=(
            "huggingface/peft#1515",
            "huggingface/trl#1202",
            "huggingface/trl#1460",
            "huggingface/transformers#29974",
            "huggingface/transformers#30236",
        ),
        pull_requests=("huggingface/transformers#29974", "huggingface/trl#1203", "huggingface/trl#4457"),
    ),
    Patch(
        name="transformers.generate",
        module="transformers.generation.utils",
        # A PEFT model's and a tuner's generate end in the base model's, which is this one.
        attribute="GenerationMixin.generate",
        load="qlora_bf16_patch.patches.generate:generate",
        promises="qlora_bf16_patch.defects.models:generate",
        summary="generate() of a k-bit model runs under autocast in its compute dtype: every operation as in training",
        **gate("transformers"),
        default=False,
        reports=("huggingface/peft#1515", "huggingface/trl#1398"),
        pull_requests=("huggingface/trl#1203",),
    ),
    # After those that they stand on.
    Patch(
        name="bitsandbytes.autocast_output",
        attribute=("Linear4bit.forward", "Linear8bitLt.forward"),
        load="qlora_bf16_patch.patches.autocast_output:forward",
        promises="qlora_bf16_patch.defects.outputs:kbit",
        summary="under autocast 4- and 8-bit layers give back autocast's dtype, as nn.Linear does",
        default=False,
        reports=("Dao-AILab/flash-attention#398", "axolotl-ai-cloud/axolotl#336"),
        pull_requests=(
            "axolotl-ai-cloud/axolotl#336",
            "huggingface/transformers#25598",
            "bitsandbytes-foundation/bitsandbytes#1728",
        ),
        **_BNB,
    ),
    Patch(
        name="peft.lora.autocast_output",
        attribute=("Linear4bit.forward", "Linear8bitLt.forward"),
        load="qlora_bf16_patch.patches.autocast_output:forward",
        promises="qlora_bf16_patch.defects.outputs:lora_layers",
        summary="under autocast LoRA on 4- and 8-bit layers gives back autocast's dtype, as nn.Linear does",
        default=False,
        reports=("Dao-AILab/flash-attention#398", "axolotl-ai-cloud/axolotl#336", "unslothai/unsloth#1013"),
        pull_requests=("axolotl-ai-cloud/axolotl#336", "huggingface/transformers#25598", "unslothai/unsloth#6526"),
        **_LORA,
    ),
    Patch(
        name="peft.tuners.autocast_output",
        load="qlora_bf16_patch.patches.autocast_output:inject_adapter",
        promises="qlora_bf16_patch.defects.outputs:tuners",
        summary="under autocast PEFT's other methods on 4- and 8-bit layers give back autocast's dtype",
        default=False,
        **_INJECTION,
    ),
)

# Patches that replaced a function of torch or transformers, and which one does their work now, in k-bit models alone.
MOVED = dict.fromkeys(("torch.attention", "transformers.attention"), "peft.boundary")
