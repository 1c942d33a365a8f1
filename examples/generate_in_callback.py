"""The reported failure (huggingface/peft#1515) on a toy model, CPU or GPU, no download.

A 4-bit Llama is prepared the way the original QLoRA script does it, trained by transformers' Trainer in bf16 or fp16, and a
callback calls model.generate() after each step. Unpatched, bf16 fails at every step and fp16 runs.

    python generate_in_callback.py [bf16|fp16] [--shim]

Exit status 0: every step generated; 1: a step failed.
"""

import argparse
import os
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("precision", nargs="?", choices=["bf16", "fp16"], default="bf16")
parser.add_argument("--shim", action="store_true", help="import qlora_bf16_patch first")
options = parser.parse_args()

os.environ["HF_HUB_OFFLINE"] = "1"
if options.shim:
    import qlora_bf16_patch  # noqa: F401

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

bf16 = options.precision == "bf16"
dtype = torch.bfloat16 if bf16 else torch.float16
device = "cuda" if torch.cuda.is_available() else "cpu"

checkpoint = tempfile.mkdtemp()
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
).to(dtype).save_pretrained(checkpoint)
model = AutoModelForCausalLM.from_pretrained(
    checkpoint,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    ),
    dtype=dtype,
    device_map={"": device},
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.05))
for name, module in model.named_modules():
    if isinstance(module, LoraLayer) and bf16:
        module.to(torch.bfloat16)
    if "norm" in name:
        module.to(torch.float32)
    if ("lm_head" in name or "embed_tokens" in name) and hasattr(module, "weight"):
        if bf16 and module.weight.dtype == torch.float32:
            module.to(torch.bfloat16)

failures = 0
PROMPT = torch.randint(3, 300, (1, 6), device=device)


class GenerateAfterStep(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        global failures
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                tokens = model.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False)
            print(f"step {state.global_step}: generated {tuple(tokens.shape)}")
        except RuntimeError as error:
            failures += 1
            print(f"step {state.global_step}: {type(error).__name__}: {error}".splitlines()[0])
        model.train(training)


def example():
    ids = torch.randint(3, 300, (16,))
    return {"input_ids": ids, "labels": ids.clone()}


Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=3,
        per_device_train_batch_size=2,
        bf16=bf16,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
    ),
    train_dataset=[example() for _ in range(8)],
    callbacks=[GenerateAfterStep()],
).train()
sys.exit(1 if failures else 0)
