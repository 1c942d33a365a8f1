"""What is known of an operation that torch has refused: whether dtypes were the reason, and where it stands."""

from __future__ import annotations

import dis
import re
import traceback
from types import FrameType

import torch

from ..numerics.mode import refused
from ..numerics.places import module_of, path_of
from .events import CastRefused, name_of

# What torch says of dtypes that do not fit: its messages have no class of their own. It decides alone whether a
# forward that failed is worth running again under the mode, which finds out whether dtypes were the reason.
_OF_DTYPES = re.compile(
    r"same dtype|dtypes?\b.*\bmatch|scalar ?type|mixed dtype|without overflow|query dtype|desired output type"
    r"|type promot|storage dtype|and (bias|weight) type|dtypes? to be|different dtypes?|input dtype"
    r"|(but|and) (got|found|expected):? (dtype )?\S*(float|half|double)|\w+ did not match \w+|primitive descriptor"
    r"|not implemented for '(Byte|Char|Half|BFloat16)'|finfo\(\) requires|be either float or double|of float, double"
    r"|found dtype|same type as|type \S+ does not equal|but got dtype",
    re.IGNORECASE,
)


def is_of_dtypes(error: Exception) -> bool:
    """Whether torch has refused dtypes, and not the model's own code or strict mode."""
    if isinstance(error, CastRefused) or not _OF_DTYPES.search(str(error)):
        return False
    return not _is_the_models_own(error)


# On an error: why the forward in which it was raised was not run again.
HINDRANCE = "_qlora_bf16_patch_hindrance"


def place_of(error: Exception, root: torch.nn.Module) -> str:
    """Path of the innermost module whose forward was running, and its statement."""
    trace = list(traceback.walk_tb(error.__traceback__))
    modules = modules_on(error)
    path = path_of(modules[-1] if modules else root, root)
    theirs = [place for place in trace if not is_torchs_or_ours(place[0])]
    statement = traceback.StackSummary.extract(iter(theirs[-1:]))[0].line if theirs else ""
    return f"{path}, `{statement}`" if statement else path


def modules_on(error: Exception) -> list[torch.nn.Module]:
    """The modules whose calls were running, the innermost last."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [module for frame in frames if (module := module_of(frame)) is not None]


def operation_of(error: Exception) -> str:
    """The operation and its operands' dtypes, where a function mode saw it; else what torch says of it."""
    seen = refused(error)
    if seen is None:
        return f"an operation ({str(error).partition(chr(10))[0]})"
    function, dtypes = seen
    return f"{name_of(function)} of {' and '.join(map(str, dtypes))}"


def refusal(error: Exception, root: torch.nn.Module) -> str:
    """What torch has refused, and where."""
    return f"torch refused {operation_of(error)} in {place_of(error, root)}"


def why_it_stays(error: Exception) -> str:
    """The rest of that sentence, and what to do."""
    hindrance = error.__dict__.get(HINDRANCE)
    if hindrance is not None:
        return (
            ", which no call of this kind had shown before. The forward was not run again with the operands cast, "
            f"since {hindrance}. The next call of this kind is watched from its start, and fixed."
        )
    seen = refused(error)
    if seen is not None and len(seen[1]) < 2:
        return ": not because of mixed floating dtypes, so there is nothing that the patch could cast."
    return (
        ". The patch knows no cast that torch would take. Cast one operand to the dtype of the other where it is made, "
        "and please report it."
    )


def is_torchs_or_ours(frame: FrameType) -> bool:
    """Whether a frame runs code of torch, or of this package."""
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith(("torch.", __name__.partition(".")[0]))


def _is_the_models_own(error: Exception) -> bool:
    """Whether a statement of the model's code has raised it; torch raises from C, or in its own Python."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or is_torchs_or_ours(trace.tb_frame):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
