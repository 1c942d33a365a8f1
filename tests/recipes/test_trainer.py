"""The report (huggingface/peft#1515) as a test: transformers' Trainer, and ``generate()`` in a callback."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
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

import qlora_bf16_patch

SCRIPT = Path(__file__).parents[2] / "examples" / "generate_in_callback.py"

# Third parties about each other: checkpointing under a new name, reentrant checkpointing, generation's defaults.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(("arguments", "status"), [((), 1), (("--shim",), 0)], ids=["unpatched", "patched"])
def test_the_reported_script_generates_only_with_the_shim(arguments, status):
    run = subprocess.run([sys.executable, str(SCRIPT), "bf16", *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == status, run.stdout + run.stderr
    assert ("expected m" in run.stdout) == (status == 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def prepared(checkpoint, dtype, checkpointing):
    """The QLoRA script's model: adapters and head in bfloat16, norms in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        ),
        dtype=dtype,
        device_map={"": "cpu"},
    )
    if checkpointing is not None:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": checkpointing}
        )
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and dtype == torch.bfloat16:
            module.to(torch.bfloat16)
        if "norm" in name:
            module.to(torch.float32)
        if ("lm_head" in name or "embed_tokens" in name) and hasattr(module, "weight"):
            module.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)  # so the fp16 script runs
    return model


class GenerateAfterStep(TrainerCallback):
    def __init__(self):
        self.failures, self.losses = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                model.generate(input_ids=torch.arange(3, 9)[None], max_new_tokens=3, do_sample=False)
        except RuntimeError as error:
            self.failures.append(str(error))
        model.train(training)


class AutocastTrainer(Trainer):
    """Mixed precision in float16, which accelerate offers on GPUs alone."""

    def autocast_smart_context_manager(self, cache_enabled=True):
        return torch.autocast("cpu", torch.float16)


def train(model, folder, bf16):
    torch.manual_seed(0)
    ids = [torch.randint(3, 300, (12,)) for _ in range(8)]
    callback = GenerateAfterStep()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = [{"input_ids": i, "labels": i.clone()} for i in ids]
    (Trainer if bf16 else AutocastTrainer)(
        model=model, args=arguments, train_dataset=data, callbacks=[callback]
    ).train()
    return callback


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["unprepared", "reentrant", "not reentrant"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_callback_generates_and_the_losses_are_the_unpatched_ones(checkpoint, tmp_path, dtype, checkpointing):
    transformers.logging.set_verbosity_error()
    runs = {}
    for patched in (False, True):
        with contextlib.nullcontext() if patched else qlora_bf16_patch.disabled():
            model = prepared(checkpoint, dtype, checkpointing)
            runs[patched] = train(model, tmp_path, bf16=dtype == torch.bfloat16)
    assert runs[True].failures == []
    assert len(runs[True].losses) == 3
    if dtype == torch.bfloat16:
        assert len(runs[False].failures) == 3
        assert all("dtype" in failure for failure in runs[False].failures)
    assert runs[True].losses == runs[False].losses
