"""The recipe of the original QLoRA script, followed step by step in our own words.

artidoro/qlora (MIT), qlora.py at 7f4e95a68dc0 (2023-07-24), line numbers below. That file itself does not start with
transformers 5.24: ``argparse.ArgumentError: argument --use_cache/--use-cache: conflicting option strings``.

    python qlora_recipe.py --model_name_or_path MODEL --dataset FILE --output_dir FOLDER [--bits 4] [--max_steps 4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True, help="lines of JSON with input and output")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--bits", type=int, default=4, choices=[4, 8])
    parser.add_argument("--max_steps", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=12)
    args = parser.parse_args()

    set_seed(0)  # here as well, so that each run begins with the same adapters
    model = get_accelerate_model(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, padding_side="right")  # line 347
    model.config.use_cache = False  # line 706
    set_seed(0)
    examples = [json.loads(line) for line in Path(args.dataset).read_text().splitlines()]
    collator = Collator(tokenizer)
    trainer = Seq2SeqTrainer(  # line 712
        model=model,
        processing_class=tokenizer,
        args=training_arguments(args),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collator,
    )
    trainer.add_callback(SavePeftModelCallback())
    trainer.train()
    trainer.evaluate(metric_key_prefix="eval")  # line 812
    # Line 479: a collator that predicts gives no targets, so upstream trains and predicts in two calls of the script.
    collator.predict_with_generate = trainer.args.predict_with_generate = True
    predicted = trainer.predict(test_dataset=examples, metric_key_prefix="predict").predictions  # line 819
    predicted[predicted == IGNORED] = tokenizer.pad_token_id
    texts = tokenizer.batch_decode(predicted, skip_special_tokens=True)
    rows = [example | {"prediction": text} for example, text in zip(examples, texts, strict=True)]
    Path(args.output_dir, "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def get_accelerate_model(args: argparse.Namespace) -> Any:
    """Lines 289 to 406."""
    model = AutoModelForCausalLM.from_pretrained(
        args.model_name_or_path,
        device_map="auto",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=args.bits == 4,
            load_in_8bit=args.bits == 8,
            llm_int8_threshold=6.0,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        ),
        dtype=torch.bfloat16,
    )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    model.gradient_checkpointing_enable()
    linear = bnb.nn.Linear4bit if args.bits == 4 else bnb.nn.Linear8bitLt
    targets = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)}
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=sorted(targets - {"lm_head"}),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for name, module in model.named_modules():  # lines 396 to 405
        if isinstance(module, LoraLayer):
            module.to(torch.bfloat16)
        if "norm" in name:
            module.to(torch.float32)
        if "lm_head" in name or "embed_tokens" in name:
            if hasattr(module, "weight") and module.weight.dtype == torch.float32:
                module.to(torch.bfloat16)
    return model


def training_arguments(args: argparse.Namespace) -> Seq2SeqTrainingArguments:
    """Lines 129 to 215, but for the sizes of a toy."""
    return Seq2SeqTrainingArguments(
        output_dir=args.output_dir,
        optim="paged_adamw_32bit" if torch.cuda.is_available() else "adamw_torch",  # the former pages on a GPU alone
        per_device_train_batch_size=2,
        max_steps=args.max_steps,
        learning_rate=2e-4,
        remove_unused_columns=False,
        max_grad_norm=0.3,
        gradient_checkpointing=True,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=2,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        generation_config=GenerationConfig(max_new_tokens=args.max_new_tokens, do_sample=False),
    )


class SavePeftModelCallback(TrainerCallback):
    """Lines 262 to 287."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].save_pretrained(Path(args.output_dir, f"checkpoint-{state.global_step}", "adapter_model"))


class Collator:
    """Lines 448 to 498: the source is no target, and alone where it is continued."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.predict_with_generate = tokenizer, False

    def __call__(self, examples: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        sources = [self.ids(f"{begin}{example['input']}") for example in examples]
        targets = [self.ids(f"{example['output']}{end}") for example in examples]
        if self.predict_with_generate:
            return self.padded(sources)
        labels = [
            torch.cat([torch.full_like(source, IGNORED), target])
            for source, target in zip(sources, targets, strict=True)
        ]
        both = [torch.cat(one) for one in zip(sources, targets, strict=True)]
        return self.padded(both) | {"labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def padded(self, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        padding = self.tokenizer.pad_token_id
        ids = pad_sequence(rows, batch_first=True, padding_value=padding)
        return {"input_ids": ids, "attention_mask": ids.ne(padding)}


if __name__ == "__main__":
    main()
