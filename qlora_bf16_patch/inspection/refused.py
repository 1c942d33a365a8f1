"""What is noted of an error that passes through the modules of a traced model."""

from __future__ import annotations

import torch

from ..watching.events import PATH
from ..watching.refusals import is_of_dtypes
from .observed import Refused

# Attributes of the error. PATH and _CLASS are of the innermost module that it has left, PHASE of the outermost.
PHASE = "_qlora_bf16_patch_phase"
_CLASS = "_qlora_bf16_patch_class"
_TOLD = "_qlora_bf16_patch_told"


def passed(error: BaseException, path: str, module: torch.nn.Module, phase: str, out: bool) -> list[Refused]:
    """An error leaves a module.

    Args:
        error: what was raised.
        path: the module's.
        module: the module.
        phase: of the outermost call.
        out: whether it leaves that one: what is run again within it is mended.

    Returns:
        The refusal, once, where it gets out and is one of dtypes; else nothing.
    """
    noted = vars(error)
    if PATH not in noted:
        noted[PATH], noted[_CLASS] = path, type(module).__name__
    noted[PHASE] = phase
    if not out or _TOLD in noted or not isinstance(error, Exception) or not is_of_dtypes(error):
        return []
    noted[_TOLD] = True  # it may come out of a generate inside of another call
    return [Refused(noted[PATH], noted.get(_CLASS, ""), phase, str(error).splitlines()[0])]
