"""The report (huggingface/peft#1515) as a test: transformers' Trainer, and ``generate()`` in a callback."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    Trainer,
    TrainingArguments,
)

import qlora_bf16_patch
from toys.trainer import GenerateAfterStep, prepared

SCRIPT = Path(__file__).parents[2] / "examples" / "generate_in_callback.py"

# Third parties about each other: checkpointing under a new name, reentrant checkpointing, generation's defaults.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.failure(row=1)
@pytest.mark.parametrize(("arguments", "status"), [((), 1), (("--shim",), 0)], ids=["unpatched", "patched"])
def test_the_reported_script_generates_only_with_the_shim(arguments, status):
    run = subprocess.run([sys.executable, str(SCRIPT), "bf16", *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == status, run.stdout + run.stderr
    assert ("expected m" in run.stdout) == (status == 1)


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


@pytest.mark.failure(row=1)
@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["unprepared", "reentrant", "not reentrant"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_callback_generates_and_the_losses_are_the_unpatched_ones(tmp_path, dtype, checkpointing):
    transformers.logging.set_verbosity_error()
    runs = {}
    for patched in (False, True):
        with contextlib.nullcontext() if patched else qlora_bf16_patch.disabled():
            model = prepared(dtype, checkpointing)
            runs[patched] = train(model, tmp_path, bf16=dtype == torch.bfloat16)
    assert runs[True].failures == []
    assert len(runs[True].losses) == 3
    if dtype == torch.bfloat16:
        assert len(runs[False].failures) == 3
        assert all("dtype" in failure for failure in runs[False].failures)
    assert runs[True].losses == runs[False].losses
