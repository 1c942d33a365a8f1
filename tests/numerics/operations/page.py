"""docs/operations.md: what was found, in families."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...pages import table
from .asking import UNDEFINED, Finding

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
Findings = Mapping[tuple[str, bool], Finding]

# What a rule's dtypes are, by the function of numerics/rules that knows them.
FAMILIES = {
    "activations": (
        "Products and layers",
        "Computed in a parameter's dtype, else in autocast's or the half precision among the operands. The result has "
        "the dtype of the first operand that is no parameter.",
    ),
    "_added": ("Products that are added to something", "The same, of the factors."),
    "_halves": (
        "Attention",
        "Computed in the half precision among query, key and value. The result has the query's dtype.",
    ),
    "first_operand": (
        "Operations that write into a tensor",
        "Computed in the dtype of the tensor that is written to, which is the first operand. So is `F.embedding_bag`, "
        "whose first operand is the table.",
    ),
    "_copied": ("Copies to an index", "Computed as a join. The result has the first operand's dtype."),
    "joined": (
        "Joins",
        "Computed in the widest dtype of the operands, which the result keeps. Under autocast, half precision is "
        "computed in autocast's dtype.",
    ),
    "widest": (
        "All other operations",
        "Computed in the widest dtype of the operands, which is float32 for bfloat16 with float16. If torch has no "
        "kernel for it, computed in the dtype of another operand. The result has the first operand's dtype. Running "
        "statistics are updated in their own dtype.",
    ),
}
# Whether torch takes a bias of another dtype goes by the kernel, and so by shape and processor.
BY_KERNEL = (
    *(f"F.{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3)),
    *("lstm", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
)
_NO_KERNEL = (
    "written in Python around a decomposition that has no half precision kernel, and no mode sees them as one operation"
)
# What is not as it should be, and why it stays so.
EXCUSED = {
    **dict.fromkeys(
        ("F.conv3d", "F.conv_transpose1d", "F.conv_transpose2d"),
        "while compiling, a bias alone of another dtype is cast, also where torch has a kernel that takes it",
    ),
    **dict.fromkeys(("svd_lowrank", "pca_lowrank"), _NO_KERNEL),
    "linalg.pinv": "one of torch's samples is a product of two operands, which has another rank in half precision, and "
    "no kernel",
    "_batch_norm_with_update": "torch's compiler alone calls it; its statistics are not updated",
}
_HEAD = """# Operations that refuse a mixture of floating dtypes

Written by `python -m tests.numerics.operations --write`, which asks torch; `tests/numerics/test_operations.py` holds
that it is true. Found with torch {version} on CPU.

Of {names} operations with at least two floating operands, called in {asked} mixtures of float32, bfloat16 and float16,
outside of autocast and under `torch.autocast("cpu", torch.bfloat16)`, {refusing} refuse {refused} mixtures, although
they run where all operands have one of these dtypes. Under the shim they run, with values within the half precision's
rounding, but for {excused} that are listed below. Where torch takes a mixture the shim gives the same bits, and casts
nothing.

Behind a name stands how many mixtures are refused, where it is not all of them. Dynamo cannot try an operation: while
compiling, the rules decide, and what they do not know raises as it does without the shim."""


def page(findings: Findings) -> str:
    names = list(dict.fromkeys(name for name, _ in findings))
    refusing = [name for name in names if findings[name, False].refused or findings[name, True].refused]
    lines = _HEAD.format(
        version=_version(),
        names=len(names),
        asked=sum(finding.mixtures for finding in findings.values()),
        refusing=len(refusing),
        refused=sum(finding.refused for (name, _), finding in findings.items() if name not in BY_KERNEL),
        excused=len(EXCUSED.keys() & set(refusing)),
    ).splitlines()
    families: Any = defaultdict(lambda: defaultdict(list))
    for name in refusing:
        outside, under = findings[name, False], findings[name, True]
        row = _how_many(outside), _how_many(under), _compiled(outside, under)
        row, shown = (
            (("by the kernel", *row[1:]), f"`{name}`") if name in BY_KERNEL else (row, _shown(name, outside, under))
        )
        families[outside.rule][row].append(shown)
    for rule, (title, what) in FAMILIES.items():
        lines += [
            "",
            f"## {title}",
            "",
            what,
            "",
            *table(
                ("operations", "outside of autocast", "under autocast", "while compiling"),
                ((", ".join(sorted(shown)), *row) for row, shown in sorted(families.pop(rule).items())),
            ),
        ]
    if families:
        raise ValueError(f"families without a title: {[*families]}")
    return "\n".join([*lines, *_not_mended(), *_not_compared(names, findings), ""])


def wrong(findings: Findings) -> list[str]:
    return [line for (name, _), finding in findings.items() if name not in EXCUSED for line in finding.wrong]


def _version() -> str:
    return torch.__version__.partition("+")[0]


def _how_many(finding: Finding) -> str:
    if not finding.refused:
        return "none"
    return "all" if finding.refused == finding.mixtures else "some"


def _compiled(*findings: Finding) -> str:
    left, refused = (sum(getattr(finding, what) for finding in findings) for what in ("uncompiled", "refused"))
    return "mended" if not left else "raises" if left == refused else "mended in part"


def _shown(name: str, outside: Finding, under: Finding) -> str:
    counts = [f"{finding.refused}/{finding.mixtures}" for finding in (outside, under) if _how_many(finding) == "some"]
    return f"`{name}`" + (f" ({', '.join(dict.fromkeys(counts))})" if counts else "")


def _not_mended() -> list[str]:
    lines = ["", "## What is not mended, and why", ""]
    reasons = defaultdict(list)
    for name, reason in EXCUSED.items():
        reasons[reason].append(f"`{name}`")
    lines += [f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    return [
        *lines,
        "- `out=`: the caller's own buffer, and its dtype a wish; so are `.data = ` and `.grad = `.",
        "- What has no kernel in half precision, whatever the mixture, as the decompositions of `torch.linalg`.",
    ]


def _not_compared(names: list[str], findings: Findings) -> list[str]:
    random = [name for name in sorted(names) if any(findings[name, autocast].random for autocast in (False, True))]
    return [
        "",
        "## Whose values were not compared",
        "",
        f"- Random, or without a kernel for float64: {', '.join(f'`{name}`' for name in random)}.",
        f"- Undefined, where torch takes a bias of another dtype and reads it as if it had the right one: "
        f"{', '.join(f'`{name}`' for name in UNDEFINED)}.",
    ]
