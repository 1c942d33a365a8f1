"""TRL's trainers with their own QLoRA preparation, on toy data, with generation inside training."""

import contextlib

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import qlora_bf16_patch

# Third parties about each other: checkpointing under a new name, experimental trainers, generation's defaults.
pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(60))]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cpu"}
    )


class GenerateAfterStep(TrainerCallback):
    def __init__(self):
        self.outcomes = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                tokens = model.generate(input_ids=torch.arange(3, 9)[None], max_new_tokens=3, do_sample=False)
            self.outcomes.append(tokens.shape[0])
        except RuntimeError as error:
            self.outcomes.append(str(error))
        model.train(training)


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
    return callback.outcomes


def test_sft_trainer_generates_inside_training(model, tokenizer, tmp_path):
    data = [{"text": text(i)} for i in range(8)]
    assert train(SFTTrainer, SFTConfig, model, tokenizer, data, tmp_path, max_length=32) == [1, 1]


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_a_trainer_that_calls_peft_module_casting_to_bf16_generates_only_with_the_shim(
    model, tokenizer, tmp_path, patched
):
    data = [{"prompt": text(i), "chosen": text(i + 8), "rejected": text(i + 20)} for i in range(8)]
    with contextlib.nullcontext() if patched else qlora_bf16_patch.disabled():
        outcomes = train(ORPOTrainer, ORPOConfig, model, tokenizer, data, tmp_path, max_length=64)
    if patched:
        assert outcomes == [1, 1]
    else:
        assert len(outcomes) == 2
        assert all("dtype" in outcome for outcome in outcomes)
