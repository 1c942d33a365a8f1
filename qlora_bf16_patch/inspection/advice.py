"""What to do, in the words of the program in use."""

from __future__ import annotations

import sys
from pathlib import Path

# Their packages and commands. A program that imports another one of these stands before it.
PROGRAMS = {
    "llamafactory": ("llamafactory", "llamafactory-cli"),
    "axolotl": ("axolotl",),
    "swift": ("swift",),
    "lm_eval": ("lm_eval", "lm-eval"),
    "trl": ("trl",),
}
_ANY = ""  # what is said where the program is not known, or has no words of its own
_COMPUTE = "set bnb_4bit_compute_dtype to bfloat16 in BitsAndBytesConfig"
_SCALER = (
    "train with bf16=True, which has no GradScaler, or keep what is trained in float32 (autocast_adapter_dtype=True)"
)

# By kind of finding what to do. The options were read in llamafactory's hparams/parser.py (0.9.5), axolotl's
# loaders/model.py, ms-swift's base_args/quant_args.py, lm_eval's models/huggingface.py (0.4.13) and trl's
# trainer/model_config.py (1.16).
ADVICE: dict[str, dict[str, str]] = {
    "mismatch": {
        _ANY: "keep `import qlora_bf16_patch`, or run evaluation and generate() under torch.autocast, as training",
        "llamafactory": "start it by `qlora-bf16-patch run llamafactory-cli ...`, or leave `upcast_layernorm: false`",
        "axolotl": "start it by `qlora-bf16-patch run axolotl ...`",
        "swift": "start it by `qlora-bf16-patch run swift ...`, or load all in one dtype by `--torch_dtype bfloat16`",
        "lm_eval": "run it by `qlora-bf16-patch run lm_eval ...`, or with mixed_precision_dtype=bfloat16 in model_args",
        "trl": "start it by `qlora-bf16-patch run trl ...`, or load all in one dtype by `--dtype bfloat16`",
    },
    "possible mismatch": {_ANY: "run it once under qlora_bf16_patch.trace(model): trace.mismatches() tells"},
    "adapters": {_ANY: "bring both to one dtype: layer.lora_A[name].to(dtype), layer.lora_B[name].to(dtype)"},
    "compute dtype": {
        _ANY: f"{_COMPUTE}, if you did not mean that",
        "llamafactory": "set `bf16: true`: the compute dtype follows it",
        "axolotl": "set `bf16: true`, or bnb_4bit_compute_dtype in `bnb_config_kwargs`",
        "swift": "add `--bnb_4bit_compute_dtype bfloat16`",
        "lm_eval": "add bnb_4bit_compute_dtype=bfloat16 to --model_args",
        "trl": "add `--dtype bfloat16`: the compute dtype follows it",
    },
    "GradScaler": {
        _ANY: _SCALER,
        "llamafactory": "set `bf16: true` in the place of `fp16: true`, and no `pure_bf16`",
        "axolotl": "set `bf16: true` and `fp16: false`",
        "swift": "give `--bf16 true --fp16 false`",
        "trl": "give `--bf16` in the place of `--fp16`",
    },
    "FSDP1": {
        _ANY: "bring frozen parameters to the storage's dtype and wrap by PEFT's fsdp_auto_wrap_policy, or take FSDP2",
        "llamafactory": "leave `upcast_layernorm: false`, or take FSDP2",
    },
    "FSDP1 packed": {
        _ANY: "set bnb_4bit_quant_storage to the dtype of the rest, or take FSDP2",
        "axolotl": "set bnb_4bit_quant_storage in `bnb_config_kwargs` to the dtype of the rest, or `fsdp_version: 2`",
        "swift": "add `--bnb_4bit_quant_storage` with the dtype of the rest, or take FSDP2",
        "trl": "add `--bnb_4bit_quant_storage bfloat16 --dtype bfloat16`, or take FSDP2",
    },
    "FSDP1 8 bits": {_ANY: "take FSDP2: 8-bit weights are stored as integers alone"},
    "unguarded": {
        _ANY: "call qlora_bf16_patch.guard(model) with the outermost module; PEFT's get_peft_model is seen by itself"
    },
    "off": {_ANY: "see `qlora_bf16_patch.status()`, which tells why and who decided"},
    "kept forward": {_ANY: "call qlora_bf16_patch.guard(model), or import qlora_bf16_patch before the model is loaded"},
    "own forward": {_ANY: "let that function call the forward that it has replaced, or leave it out"},
    "class forward": {_ANY: "call super().forward in it, or qlora_bf16_patch.enable() to patch a replaced method anew"},
}


def advice(kind: str, program: str | None) -> str:
    """One sentence, without its capital and its full stop.

    Args:
        kind: a key of :data:`ADVICE`.
        program: one of :data:`PROGRAMS`, or None.
    """
    words = ADVICE[kind]
    return words.get(program or _ANY, words[_ANY])


def program_in_use() -> str | None:
    """The program whose command started this process, or whose package is imported; None for none that is known."""
    started = Path(sys.argv[0]).name if sys.argv else ""
    for name, names in PROGRAMS.items():
        if started in names:
            return name
    return next((name for name in PROGRAMS if name in sys.modules), None)
