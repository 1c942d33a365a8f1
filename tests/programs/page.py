"""``docs/programs.md``, made from the records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .. import pages
from .record import RECORDS
from .settings import PROGRAMS

PAGE = RECORDS.with_suffix(".md")
LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate", "torch")
INTRODUCTION = """\
# Programs

<!-- Written by `python -m tests.programs --write` from docs/programs/*.json. -->

Programs of others, unmodified, on a toy Llama with random weights, two layers, 64 wide. `make programs` installs each
in an environment of its own (`make programs PROGRAM=trl` one of them), starts it by its own command line, and writes
what it finds to `docs/programs/`: the whole command, the files that it was given, losses with all their bits, the
generated text, the state of each patch and its notes.

## How to switch the shim on

A program of others has no top of the script. This starts it with the shim on, in itself and in every worker that it
starts ([diagnosing](diagnosing.md)):

    qlora-bf16-patch run llamafactory-cli train sft.yaml

Where the command itself cannot be changed, the environment can. Python imports a module `sitecustomize` at each start,
so one file in a folder of its own is enough. The records below were made so; the first setting of LLaMA-Factory was run
by the command above as well, with the same losses, casts and texts.

    mkdir switched_on
    echo 'import qlora_bf16_patch' > switched_on/sitecustomize.py
    PYTHONPATH=$PWD/switched_on llamafactory-cli train sft.yaml

The shim loads no library by itself, so this costs other programs 1.34 times `import wrapt` ([cost](cost.md)). Its
switches work as ever: `QLORA_BF16_PATCH_LOG=info` tells where something is cast, `QLORA_BF16_PATCH=off` is off. Where
the system has a `sitecustomize` of its own (Ubuntu's writes reports of crashes), the folder's takes its place.
"""
# What a user types, and what is to be known of it.
SWITCHED_ON = {
    "llamafactory": (
        "LLaMA-Factory",
        "PYTHONPATH=$PWD/switched_on llamafactory-cli train sft.yaml",
        "`torchrun`, which it starts on several GPUs, hands the variable on.",
    ),
    "trl": (
        "TRL's command line",
        "PYTHONPATH=$PWD/switched_on trl grpo --config grpo.yaml",
        "`accelerate launch`, by which it starts its scripts, hands the variable on.",
    ),
    "ms-swift": (
        "ms-swift",
        "PYTHONPATH=$PWD/switched_on swift sft --model MODEL --quant_method bnb --quant_bits 4",
        "`swift` starts a Python of its own for each command, which is given the variable. Its own door is "
        "`--external_plugins switched_on.py`, with a file of the one line.",
    ),
    "lm_eval": (
        "lm_eval",
        "PYTHONPATH=$PWD/switched_on lm_eval --model hf --model_args pretrained=MODEL,peft=ADAPTER,load_in_4bit=True",
        "Do not compare a score with the shim to one without: see [before you decide](before-you-decide.md).",
    ),
    "qlora": (
        "The original QLoRA script",
        "import qlora_bf16_patch  # the first line of qlora.py",
        "`tests/programs/qlora_recipe.py` follows the script step by step on the releases of today. It was switched on "
        "as the others were.",
    ),
}
READING = """\
## How to read the tables

*Off* is the program as it is, *on* is the same command with the shim. Losses and the norms of gradients are compared
over the steps that both took. The reference is the program as it is, with autocast around every `generate()`. A text
is one answer of a model to one prompt, chosen greedily unless the program samples.

Texts need not be the same: a model of random weights has many tokens that are nearly as likely as the first, so that a
rounding chooses another. Without the shim PEFT computes adapters in float32 outside of autocast, with it they compute
what they computed in training, and what lies between the layers keeps its dtype. In 8 bits the reference itself rounds:
under a CPU's autocast bitsandbytes multiplies integers in half precision, which the shim does not
([contracts](contracts.md)). On both sides bitsandbytes is kept from repacking weights for this CPU, which rounds them,
too ([before you decide](before-you-decide.md)). Who wants autocast's own rounding in every `generate()` switches the
patch `transformers.generate` on.
"""


def records() -> dict[str, dict[str, Any]]:
    """What was recorded, by program, in the order of ``settings.py``."""
    files = {name: RECORDS / f"{name}.json" for name in PROGRAMS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page() -> str:
    parts = [INTRODUCTION, READING]
    for name, record in records().items():
        parts += [*program(name, record), ""]
    return "\n".join(parts)


def program(name: str, record: dict[str, Any]) -> Iterator[str]:
    title, command, words = SWITCHED_ON[name]
    yield from (f"## {title}", "", f"    {command}", "", words, "")
    columns = ("setting", "off", "on", "losses and gradient norms off and on", *TEXTS, "casts")
    yield from pages.table(columns, (cells(*setting) for setting in record["settings"].items()))
    yield ""
    yield from (f"- {note}" for note in notes(record))
    versions = record["versions"]
    own = [one for one in [name.replace("_", "-")] if one in versions]
    libraries = ", ".join(f"{one} {versions[one]}" for one in (*own, *LIBRARIES))
    yield f"- {libraries}, Python {record['python']}; {record['machine']}."
    yield f"- Recorded on {record['date']}, the package as of commit {record['commit']}."


def cells(setting: str, found: dict[str, Any]) -> list[str]:
    return [setting, outcome(found["off"]), outcome(found["on"]), losses(found), *texts(found), casts(found["on"])]


def notes(record: dict[str, Any]) -> Iterator[str]:
    for setting, found in record["settings"].items():
        if "why" in found:
            yield f"{setting}: {found['why']}"
        if "reference" in found and found["reference"]["outcome"] != "done":
            yield f"{setting}: the reference ends as well: {outcome(found['reference'])}"
        if texts := answers(found["on"]):
            yield f"{setting}: the first text with the shim: `` {texts[0]!r} ``"


TEXTS = ("texts on as in the reference", "texts off as in the reference")


def outcome(run: dict[str, Any]) -> str:
    """Done, or where it ended with which error."""
    if run["outcome"] == "done":
        return "done"
    return f"`` {run['outcome']} `` after {len(run.get('losses', ()))} steps"


def losses(found: dict[str, Any]) -> str:
    off, on = (likelihoods(found[side]) for side in ("off", "on"))
    if on:
        same = sum(one == other for one, other in zip(off, on, strict=True))
        return f"{same} of {len(on)} log-likelihoods the same"
    off, on = (found[side].get("losses", []) for side in ("off", "on"))
    both = min(len(off), len(on))
    if not both:
        return f"{len(on)} with the shim alone" if on else "none"
    norms = [gradients(found[side]) for side in ("off", "on")]
    same = off[:both] == on[:both] and all(one == other for one, other in zip(*norms, strict=False))
    return f"{'the same bits' if same else 'other bits'} in {both} steps"


def gradients(run: dict[str, Any]) -> list[float]:
    """Their norm in each optimizer step. GRPO's loss is zero while the policy is the one that generated."""
    return [log["grad_norm"] for log in run.get("logs", ()) if "grad_norm" in log]


def likelihoods(run: dict[str, Any]) -> list[float]:
    """lm_eval's, of each choice: it trains nothing."""
    return [float(choice[0][0]) for choices in run.get("answers", {}).get("toy_choice", ()) for choice in choices]


def texts(found: dict[str, Any]) -> Iterator[str]:
    reference = answers(found.get("reference", {}))
    for side in ("on", "off"):
        given = answers(found[side])
        same = sum(one == other for one, other in zip(given, reference, strict=False))
        yield f"{same} of {len(reference)}" if reference and given else "none"


def answers(run: dict[str, Any]) -> list[str]:
    """The texts in their order, as far as they were generated."""
    return [text for one in run.get("generated", ()) for text in one.get("text", ())]


def casts(run: dict[str, Any]) -> str:
    """How many patches were active, and where the shim cast something."""
    if "states" not in run:
        return "nothing was patched: it ended before"
    active = sum(state == "active" for state in run["states"].values())
    places = [note.partition(": casts at ")[2] for note in run["notes"] if ": casts at " in note]
    return f"{active} patches active; {'; '.join(places) or 'nothing cast'}"
