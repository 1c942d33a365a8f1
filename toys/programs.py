"""A toy checkpoint with random weights, its tokenizer, an adapter, and the data of every program, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LAYERS, WIDTH = 2, 64
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTIONS = [f"What is {i} and {i + 1}?" for i in range(4)]
ANSWERS = [f"It is {2 * i + 1}." for i in range(4)]
OTHERS = [f"I do not know {i}." for i in range(4)]


def make(folder: Path) -> None:
    """Everything that a run reads: ``model``, ``adapter`` and the data by program."""
    checkpoint(folder / "model")
    adapter(folder)
    pairs = list(zip(QUESTIONS, ANSWERS, OTHERS, strict=True))
    # https://llamafactory.readthedocs.io: data/dataset_info.json names the files of a folder.
    write(folder / "llamafactory" / "alpaca.json", [{"instruction": q, "input": "", "output": a} for q, a, _ in pairs])
    write(folder / "llamafactory" / "dataset_info.json", {"alpaca": {"file_name": "alpaca.json"}})
    lines(folder / "prompts" / "train.jsonl", ({"prompt": [said("user", q)]} for q, _, _ in pairs))
    lines(folder / "completions" / "train.jsonl", ({"prompt": q, "completion": a} for q, a, _ in pairs))
    lines(folder / "preferences" / "train.jsonl", ({"prompt": q, "chosen": a, "rejected": o} for q, a, o in pairs))
    lines(folder / "messages.jsonl", ({"messages": [said("user", q), said("assistant", a)]} for q, a, _ in pairs))
    lines(folder / "instructions.jsonl", ({"input": q, "output": a} for q, a, _ in pairs))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def checkpoint(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Logits far enough apart that a rounding chooses no other token.
        initializer_range=0.3,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def tokenizer(folder: Path) -> Any:
    """A token a letter, so that what is generated can be read; special tokens, and a template of chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "\n" + "".join(map(chr, range(32, 127)))
    # In the alphabet of bytes a space and a newline have letters of their own.
    names = [
        PAD,
        BOS,
        EOS,
        *pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(letters)[0][0],
    ]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (PAD, BOS, EOS)])
    words = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    return words


def adapter(folder: Path) -> None:
    """A LoRA adapter of ``model`` whose every parameter does something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "adapter")


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1))


def lines(file: Path, rows: Iterable[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
