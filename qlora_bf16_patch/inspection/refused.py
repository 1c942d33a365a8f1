"""What is noted of an error that passes through the modules of a traced model."""

from __future__ import annotations

import dataclasses

import torch

from ..watching.refusals import is_of_dtypes
from .observed import Refused

_NOTES = "_qlora_bf16_patch_notes"  # an attribute of the error: a note of each trace that saw it


@dataclasses.dataclass
class Note:
    """Where an error came from, as one trace saw it.

    Attributes:
        path: of the innermost module that it has left.
        module: that one's class.
        phase: of the outermost call.
        told: whether it has got out of an outermost call; it may come out of a generate inside of another one.
    """

    path: str
    module: str
    phase: str
    told: bool = False


def passed(
    error: BaseException, trace: object, path: str, module: torch.nn.Module, phase: str, out: bool
) -> list[Refused]:
    """An error leaves a module.

    Args:
        error: what was raised.
        trace: the one that saw it.
        path: the module's.
        module: the module.
        phase: of the outermost call.
        out: whether it leaves that one: what is run again within it is mended.

    Returns:
        The refusal, once, where it gets out and is one of dtypes; else nothing.
    """
    notes: dict[int, Note] = vars(error).setdefault(_NOTES, {})
    note = notes.setdefault(id(trace), Note(path, type(module).__name__, phase))
    note.phase = phase
    if not out or note.told or not isinstance(error, Exception) or not is_of_dtypes(error):
        return []
    note.told = True
    return [Refused(note.path, note.module, phase, str(error).splitlines()[0])]


def note_of(error: BaseException, trace: object) -> Note | None:
    """What a trace noted of it; None where it came through none of its modules."""
    found: Note | None = getattr(error, _NOTES, {}).get(id(trace))
    return found
