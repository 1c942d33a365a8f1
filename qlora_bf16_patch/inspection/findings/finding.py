"""What a report finds at a place in a model, and what is known where it looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ...engine.installation import Installation


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing at one place.

    Attributes:
        path: the module's; of layers that are alike each has its own.
        module: its class.
        kind: ``mismatch``, ``possible mismatch``, ``compute dtype``, ``GradScaler``, ``FSDP1``, ``bypassed`` or
            ``unguarded``.
        what: what it is.
        meaning: what follows.
        advice: what to do, in the words of the program in use where it is known.
        operation: of a mismatch, torch's name of the operation that refuses.
        given: the dtype that it is given.
        to: the dtype that it computes in.

    Examples:
        >>> finding = qlora_bf16_patch.report(model).findings[0]
        >>> finding.kind, finding.operation, finding.given, finding.to
        ('mismatch', 'linear', 'float32', 'bfloat16')
        >>> finding.what
        'it is given float32 hidden states, and its weight is bfloat16'
    """

    path: str
    module: str
    kind: str
    what: str
    meaning: str
    advice: str
    operation: str = ""
    given: str = ""
    to: str = ""


@dataclasses.dataclass(frozen=True)
class Looked:
    """At what a finder looks.

    Attributes:
        model: a k-bit model.
        program: the one in use, a key of :data:`..advice.ADVICE`; None where it is not known.
        installations: what the patches have put in place.
    """

    model: torch.nn.Module
    program: str | None
    installations: Sequence[Installation]
