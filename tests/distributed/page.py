"""``python -m tests.distributed.page [--write]``: ``docs/engines.md``, from the records and the engines' own lines."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pages
from ..versions.processes import ROOT
from .engines import TRAINER

RECORDS = ROOT / "docs" / "engines"
PAGE = ROOT / "docs" / "engines.md"
HERE = Path(__file__).parent
_SHOWN = re.compile(r"# >>>\n(.*?)\n *# <<<", re.DOTALL)
IMPORT = "import qlora_bf16_patch  # at the top of the script that every process runs"
INTRODUCTION = """\
# Engines

<!-- Written by `python -m tests.distributed.page --write` from docs/engines/*.json and tests/distributed/. -->

A script that is run by more than one process needs the import, and nothing else of the shim. What differs from engine
to engine is how a model comes into it, and how it generates there. The lines that are shown are those of
`tests/distributed`, which runs them: on two processes (gloo, one machine, no GPU) a Llama in 4 bits as the QLoRA script
leaves it, its adapters and head in bfloat16 and its norms in float32, `bnb_4bit_quant_storage=torch.bfloat16`, trains
three steps under autocast on data of each process' own, evaluates and generates outside of autocast, once before the
third step and once after it, and saves. Without the shim that evaluation and generation fail, as in
huggingface/peft#1515. Losses, state dicts, adapters and each process' shards are hashed, and compared without and with
the shim, and between the processes.

`make test` runs all but DeepSpeed, Fabric and Ray; `make engines` installs those in an environment of their own, runs
all, and writes what it finds to `docs/engines/`.
"""


@dataclass(frozen=True)
class Section:
    """What a user of an engine reads.

    Attributes:
        title: of the section.
        engines: by their names.
        source: the file whose lines are shown.
        classes: those in it whose lines are; none means all.
        notes: what was seen.
    """

    title: str
    engines: tuple[str, ...]
    source: str
    classes: tuple[str, ...] = ()
    notes: str = ""


SECTIONS = (
    Section(
        "transformers' Trainer",
        (TRAINER,),
        "trainer.py",
        notes="""\
Started by `torchrun --nproc-per-node 2`. `generate` stands in a callback, after each step. `Trainer.evaluate` runs
under autocast, and its loss is the same bits without the shim.""",
    ),
    Section(
        "Accelerate",
        ("Accelerate",),
        "engines/accelerator.py",
        notes="""\
Two processes are DDP. The model that `prepare` gives back is called under autocast; what `unwrap_model` gives back
generates, and its base model evaluates, outside of it. `unwrap_model(model, keep_fp32_wrapper=False)` takes autocast
off the model for good: what is trained after it is trained outside of autocast.""",
    ),
    Section(
        "DistributedDataParallel",
        ("DDP", "compiled DDP"),
        "engines/ddp.py",
        ("DDP",),
        notes="""\
Also compiled, `torch.compile(DistributedDataParallel(model), backend="aot_eager")`: with a Llama of one layer, and with
buckets so small that Dynamo splits its graphs at them.""",
    ),
    Section(
        "FSDP2",
        ("FSDP2",),
        "engines/fsdp2.py",
        notes="""\
`PeftModel.generate` calls the base model, past the hook that gathers what belongs to no layer: so it is registered. The
state dict holds the packed weights without their scales, without the shim as with it: save the adapters.""",
    ),
    Section(
        "FSDP1",
        ("FSDP1", "FSDP1, flat"),
        "engines/fsdp1.py",
        notes="""\
With `use_orig_params=True` and `False` (flat). What FSDP1 flattens together must have one dtype, so norms in float32
are wrapped by themselves. The outermost parameters are gathered for `generate`, the others as it goes; with
`recurse=True` FSDP1 refuses flat ones (`Expects tensor to be unsharded`). The flat state dict holds the packed weights
without their scales: save the adapters.""",
    ),
    Section(
        "DeepSpeed",
        ("ZeRO-2", "ZeRO-3"),
        "engines/zero.py",
        notes="""\
`zero` is `{"stage": 2}`, or `{"stage": 3, "stage3_param_persistence_threshold": 0}`, with which nothing is small enough
to stay whole: 4-bit weights are partitioned as well, and gathered in each forward. `OPTIONS` are a batch size and leave
for torch's own AdamW. DeepSpeed's own all-reduce for CPUs was switched off, since it has to be compiled first.""",
    ),
    Section(
        "Lightning Fabric",
        ("Fabric",),
        "engines/fabric.py",
        notes="""\
The model that `setup` gives back is called under autocast; `model.module` is the PEFT model, outside of it.""",
    ),
    Section(
        "Ray Train",
        ("Ray Train",),
        "engines/ray_train.py",
        notes="""\
In the function that is given to `TorchTrainer`, whose workers import the shim. What `prepare_model` gives back is
DDP's.""",
    ),
)


def file_of(name: str) -> Path:
    return RECORDS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"


def records() -> dict[str, dict[str, Any]]:
    """What was recorded, by engine."""
    files = {name: file_of(name) for section in SECTIONS for name in section.engines}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def lines(source: str, classes: tuple[str, ...] = ()) -> str:
    """What a user writes: what stands between ``# >>>`` and ``# <<<`` in a file, or in some of its classes."""
    text = (HERE / source).read_text()
    nodes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    parts = [ast.get_source_segment(text, nodes[name], padded=True) or "" for name in classes] or [text]
    blocks = [
        textwrap.dedent(block) for part in parts for block in re.findall(r"# >>>\n(.*?)\n *# <<<", part, re.DOTALL)
    ]
    if not any("generate" in block for block in blocks):  # it does as most engines
        blocks.append(lines("engines/base.py", ("Engine",)))
    return "\n".join(blocks)


def page() -> str:
    found = records()
    sections = (line for section in SECTIONS for line in told(section, found))
    return "\n".join([INTRODUCTION, *table(found), *sections]) + "\n"


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    columns = ("run", "without the shim", "with it", "the same bits without and with it", "the same on both ranks")
    runs = (run for record in found.values() for run in record["runs"].items())
    yield from pages.table(columns, (cells(*run) for run in runs))


def cells(name: str, run: dict[str, Any]) -> list[str]:
    if "raised" in run:
        return [name, f"`{run['raised']}`", "", "", ""]
    same = (counted(run[f"the same {what}"]) for what in ("without and with", "on both ranks"))
    return [name, spoken(run["without"]), spoken(run["with"]), *same]


def spoken(said: dict[str, str]) -> str:
    """In a word, what evaluation and generation came to."""
    short = {what: "fails" if "same dtype" in text else text for what, text in said.items()}
    if len({*short.values()}) == 1:
        return next(iter(short.values()))
    return ", ".join(f"{what} {text}" for what, text in short.items())


def counted(same: dict[str, bool]) -> str:
    other = [what for what, is_same in same.items() if not is_same]
    return f"not: {', '.join(other)}" if other else ", ".join(same)


def told(section: Section, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield from ("", f"## {section.title}", "")
    yield from ("```python", IMPORT, "", lines(section.source, section.classes), "```", "")
    if section.notes:
        yield from (section.notes, "")
    for name in section.engines:
        record = found[name]
        versions = ", ".join(f"{library} {release}" for library, release in record["versions"].items())
        yield (
            f"- {name}: {versions}; Python {record['python']}, {record['machine']}, {record['date']}, commit "
            f"{record['commit']}."
        )


if __name__ == "__main__":
    pages.main("page", __doc__, {PAGE: page})
