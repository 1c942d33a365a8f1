"""The programs, each with the settings in which it is run: its own command line and its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .observed.observed import BF16

# TOY stands for the folder that toys/programs.py makes; a run's own folder is its working directory.
TOY = "toy"


@dataclass(frozen=True)
class Setting:
    """One way to run a program.

    Attributes:
        command: as a user types it; the program is the environment's own.
        files: what it reads beside the toys, by name.
        environ: variables.
        door: arguments by which the program imports code of the user's, which switch the shim on in place of
            ``sitecustomize``.
        why: what is to be known of it.
    """

    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    door: tuple[str, ...] = ()
    why: str = ""


def yaml(**options: object) -> str:
    return "".join(
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}\n" for name, value in options.items()
    )


def llamafactory(bits: int, **options: object) -> dict[str, str]:
    """The file that ``llamafactory-cli train`` reads."""
    return {
        "sft.yaml": yaml(
            **{
                "model_name_or_path": f"{TOY}/model",
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "lora",
                "lora_target": "all",
                "lora_rank": 8,
                "quantization_bit": bits,
                "upcast_layernorm": True,
                "dataset_dir": f"{TOY}/llamafactory",
                "dataset": "alpaca",
                "eval_dataset": "alpaca",
                "template": "default",
                "cutoff_len": 128,
                "output_dir": "out",
                "bf16": True,
                "use_cpu": True,
                "per_device_train_batch_size": 2,
                "per_device_eval_batch_size": 2,
                "learning_rate": "1.0e-3",
                "max_steps": 4,
                "logging_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "save_strategy": "'no'",
                "predict_with_generate": True,
                "generation_max_length": 48,
                "report_to": "none",
                "overwrite_cache": True,
            }
            | options
        )
    }


LLAMAFACTORY = ("llamafactory-cli", "train", "sft.yaml")
PURE = {"bf16": False, "pure_bf16": True}
PROGRAMS: dict[str, dict[str, Setting]] = {
    "llamafactory": {
        "sft, 4 bits": Setting(LLAMAFACTORY, llamafactory(4)),
        "sft, 8 bits": Setting(LLAMAFACTORY, llamafactory(8)),
        "sft, 4 bits, pure_bf16": Setting(LLAMAFACTORY, llamafactory(4, **PURE)),
        "sft, 4 bits, pure_bf16, told that the CPU computes in bf16": Setting(
            LLAMAFACTORY,
            llamafactory(4, **PURE),
            {BF16: "1"},
            why="LLaMA-Factory asks for a GPU or an NPU. Here transformers' is_torch_bf16_gpu_available answers yes.",
        ),
    },
}


def trl(command: str, data: str, *options: str, **files: str) -> Setting:
    return Setting(
        (
            *("trl", command, "--model_name_or_path", f"{TOY}/model", "--dataset_name", f"{TOY}/{data}"),
            *("--load_in_4bit", "True", "--dtype", "bfloat16", "--bf16", "True", "--use_cpu", "True"),
            *("--use_peft", "True", "--lora_r", "8", "--lora_target_modules", "all-linear", "--learning_rate", "1e-3"),
            *("--output_dir", "out", "--report_to", "none", "--save_strategy", "no"),
            *("--max_steps", "4", "--logging_steps", "1", "--per_device_train_batch_size", "2"),
            *options,
        ),
        {f"{name}.py": text for name, text in files.items()},
    )


# Two completions of a prompt are to have two rewards, or nothing is learned.
REWARDS = (
    "def letters(completions, **_):\n    return [sum(map(str.isalpha, one[0]['content'])) for one in completions]\n"
)
EVALUATED = ("--eval_strategy", "steps", "--eval_steps", "2", "--dataset_test_split", "train")
PROGRAMS["trl"] = {
    "sft, 4 bits": trl("sft", "completions", *EVALUATED),
    "dpo, 4 bits": trl("dpo", "preferences", *EVALUATED),
    "grpo, 4 bits": trl(
        *("grpo", "prompts", "--reward_funcs", "rewards.letters"),
        *("--num_generations", "2", "--max_completion_length", "12"),
        rewards=REWARDS,
    ),
}


def swift(bits: int, *options: str) -> Setting:
    return Setting(
        (
            *("swift", "sft", "--model", f"{TOY}/model", "--model_type", "llama", "--template", "dummy"),
            *("--dataset", f"{TOY}/messages.jsonl", "--val_dataset", f"{TOY}/messages.jsonl"),
            *("--quant_method", "bnb", "--quant_bits", str(bits), "--torch_dtype", "bfloat16"),
            *("--tuner_type", "lora", "--target_modules", "all-linear", "--lora_rank", "8", "--learning_rate", "1e-3"),
            *("--output_dir", "out", "--report_to", "none", "--save_strategy", "no", "--use_cpu", "true"),
            *("--max_steps", "4", "--logging_steps", "1", "--eval_strategy", "steps", "--eval_steps", "2"),
            *("--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"),
            *("--predict_with_generate", "true", "--max_new_tokens", "12", "--temperature", "0"),
            *options,
        )
    )


PROGRAMS["ms-swift"] = {
    "sft, 4 bits": swift(4),
    "sft, 8 bits": swift(8),
    "sft, 4 bits, by --external_plugins": replace(
        swift(4),
        files={"switched_on.py": "import qlora_bf16_patch\n"},
        door=("--external_plugins", "switched_on.py"),
        why="The shim is imported by ms-swift's own option for code of the user's, after all libraries.",
    ),
}


def lm_eval(model: str, *options: str) -> Setting:
    tasks = {
        "toy_generate": "output_type: generate_until\n"
        "generation_kwargs:\n  until: ['\\n\\n']\n  max_gen_toks: 12\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n",
        "toy_choice": "output_type: multiple_choice\ndoc_to_choice: ['{{output}}', 'I do not know.']\n"
        "metric_list:\n  - metric: acc\n",
    }
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {TOY}/instructions.jsonl\ntest_split: test\n"
        "doc_to_text: '{{input}} '\n"
    )
    targets = {"toy_generate": "'{{output}}'", "toy_choice": "0"}
    files = {
        f"{name}.yaml": f"task: {name}\n{common}doc_to_target: {targets[name]}\n{text}" for name, text in tasks.items()
    }
    return Setting(
        (
            *("lm_eval", "--model", "hf", "--model_args", model, "--include_path", "."),
            *("--tasks", "toy_generate,toy_choice", "--device", "cpu", "--batch_size", "2"),
            *("--output_path", "out", "--log_samples", *options),
        ),
        files,
    )


LORA = f"pretrained={TOY}/model,peft={TOY}/adapter,dtype=bfloat16"
PROGRAMS["lm_eval"] = {
    "LoRA on 4 bits": lm_eval(f"{LORA},load_in_4bit=True,bnb_4bit_compute_dtype=bfloat16"),
    "LoRA on 8 bits": lm_eval(f"{LORA},load_in_8bit=True"),
    "LoRA on 4 bits, mixed_precision_dtype=bfloat16": lm_eval(
        f"{LORA},load_in_4bit=True,bnb_4bit_compute_dtype=bfloat16,mixed_precision_dtype=bfloat16"
    ),
}


def qlora(bits: int) -> Setting:
    script = str(Path(__file__).with_name("qlora_recipe.py"))
    data = ("--dataset", f"{TOY}/instructions.jsonl", "--output_dir", "out")
    return Setting(("python", script, "--model_name_or_path", f"{TOY}/model", *data, "--bits", str(bits)))


PROGRAMS["qlora"] = {"4 bits": qlora(4), "8 bits": qlora(8)}
