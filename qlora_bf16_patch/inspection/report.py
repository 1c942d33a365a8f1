"""``qlora_bf16_patch.report(model)``: the dtypes that a model holds, and what to expect of them, without running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..engine.tables import Section
from ..hosts.given import expect_kbit_model
from .advice import program_in_use
from .findings import find
from .findings.finding import Finding, Looked
from .folding import folded, labels
from .held import Held, held_by
from .observed import from_row, text, to_row, whole
from .saved import Saved
from .table import as_rich

if TYPE_CHECKING:
    from ..engine.installation import Installation

COLUMNS = ("module", "class", "weight", "storage", "compute", "parameters", "trainable", "modules")


class Report(Saved):
    """What a model holds, and what is found in it. It keeps no tensor and no module.

    Attributes:
        model: the model's class.
        program: the program in use, in whose words advice is given; None where none is known.
        held: a row for each module with parameters of its own.
        findings: what to expect, in the order in which it matters.
        on_meta: how many parameters are meta tensors, which have dtypes and no values.

    Examples:
        >>> report = qlora_bf16_patch.report(model)
        >>> report.model, report.program, report.on_meta
        ('PeftModelForCausalLM', None, 0)
        >>> [finding.kind for finding in report.findings]
        ['mismatch', 'FSDP1', 'FSDP1', 'FSDP1']
    """

    FORMAT = "qlora_bf16_patch report 1"

    def __init__(
        self,
        model: str,
        program: str | None = None,
        held: Sequence[Held] = (),
        findings: Sequence[Finding] = (),
        on_meta: int = 0,
    ) -> None:
        self.model, self.program, self.on_meta = model, program, on_meta
        self.held, self.findings = tuple(held), tuple(findings)

    def mismatches(self) -> list[Finding]:
        """Those that the first call outside of autocast would find: of torch's own layers, and of adapters.

        Returns:
            Those of ``findings`` that are mismatches, and not only possible ones.

        Examples:
            >>> [(one.path, one.given, one.to) for one in qlora_bf16_patch.report(model).mismatches()]
            [('base_model.model.lm_head', 'float32', 'bfloat16')]
        """
        return [finding for finding in self.findings if finding.kind == "mismatch"]

    def spoken_mismatches(self) -> list[str]:
        """Lines that tell of ``mismatches()``.

        Returns:
            The lines; none where there is no mismatch.

        Examples:
            >>> qlora_bf16_patch.report(model).spoken_mismatches()[1]
            '  base_model.model.lm_head (Linear): it is given float32 hidden states, and its weight is bfloat16'
        """
        return list(spoken(self.mismatches()))

    def _fields(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "program": self.program,
            "held": [to_row(one, 1) for one in self.held],
            "findings": [to_row(one, 1) for one in self.findings],
            "on_meta": self.on_meta,
        }

    @classmethod
    def _made_of(cls, found: dict[str, Any]) -> Report:
        return cls(
            text(found["model"]),
            found["program"] and text(found["program"]),
            [from_row(Held, row)[0] for row in found["held"]],
            [from_row(Finding, row)[0] for row in found["findings"]],
            whole(found["on_meta"]),
        )

    def _page(self) -> str:
        from .page.of_report import page_of

        return page_of(self)

    def shown(self) -> tuple[list[Section], list[str]]:
        """What the table is made of.

        Returns:
            A list of one table, which is a title, names of columns and rows of words; and the lines beneath it.

        Examples:
            >>> ((title, columns, rows),), lines = qlora_bf16_patch.report(model).shown()
            >>> title, rows[-1]
            ('PeftModelForCausalLM', ('   lm_head', 'Linear', 'bfloat16', '', '', 'bfloat16', '', '1'))
        """
        return [self._section()], self._told()

    def __rich__(self) -> Any:
        return as_rich(*self.shown())

    def _section(self) -> Section:
        shown = folded(dict.fromkeys(self.held, 1))
        rows = [
            (
                label,
                row.seen.module,
                row.seen.weight or "",
                row.seen.storage or "",
                row.seen.compute or "",
                ", ".join(row.seen.parameters),
                ", ".join(row.seen.trainable),
                str(row.modules),
            )
            for label, row in zip(labels(row.path for row in shown), shown, strict=True)
        ]
        return self.model, COLUMNS, rows

    def _told(self) -> list[str]:
        told = list(spoken(self.findings))
        if self.on_meta:
            told.append(
                f"{self.on_meta} parameters are meta tensors: what is said of them is what they will be loaded as."
            )
        return told or ["Nothing to expect was found."]


def spoken(findings: Sequence[Finding]) -> Iterator[str]:
    """Lines: the places of each kind, what follows, and the advice once for all of them."""
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, finding.meaning, finding.advice].append(finding)
    for (kind, meaning, advice), members in groups.items():
        yield f"{kind}: {meaning}."
        for row in folded(dict.fromkeys(members, 1)):
            modules = f", in {row.modules} modules" if row.modules > 1 else ""
            yield f"  {row.path or 'the model'} ({row.seen.module}): {row.seen.what}{modules}"
        yield f"  Advice: {advice}."


def report(model: torch.nn.Module, installations: Sequence[Installation] = ()) -> Report:
    """See :func:`qlora_bf16_patch.report`.

    Args:
        model: one with 4- or 8-bit layers.
        installations: what the patches have put in place.
    """
    expect_kbit_model(model, "report")
    looked = Looked(model, program_in_use(), installations)
    on_meta = sum(parameter.is_meta for parameter in model.parameters())
    return Report(type(model).__name__, looked.program, list(held_by(model)), list(find(looked)), on_meta)
