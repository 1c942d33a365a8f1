"""TRL's trainers with their own QLoRA preparation, on toy data, with generation inside training."""

import contextlib

import pytest
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import qlora_bf16_patch
from toys.llama import quantized
from toys.trainer import GenerateAfterStep

# Third parties about each other: checkpointing under a new name, experimental trainers, generation's defaults.
pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(60))]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model():
    return quantized()


def text(start):
    return " ".join(f"w{(start + i) % 60}" for i in range(8))


def train(trainer, config, model, tokenizer, data, folder, **options):
    arguments = config(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        bf16=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=True,
        **options,
    )
    callback = GenerateAfterStep()
    trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        callbacks=[callback],
    ).train()
    return callback


def test_sft_trainer_generates_inside_training(model, tokenizer, tmp_path):
    data = [{"text": text(i)} for i in range(8)]
    callback = train(SFTTrainer, SFTConfig, model, tokenizer, data, tmp_path, max_length=32)
    assert (len(callback.generated), callback.failures) == (2, [])


@pytest.mark.failure(row=1)
@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_a_trainer_that_calls_peft_module_casting_to_bf16_generates_only_with_the_shim(
    model, tokenizer, tmp_path, patched
):
    data = [{"prompt": text(i), "chosen": text(i + 8), "rejected": text(i + 20)} for i in range(8)]
    with contextlib.nullcontext() if patched else qlora_bf16_patch.disabled():
        callback = train(ORPOTrainer, ORPOConfig, model, tokenizer, data, tmp_path, max_length=64)
    assert (len(callback.generated), len(callback.failures)) == ((2, 0) if patched else (0, 2))
    assert all("dtype" in failure for failure in callback.failures)
