"""What torch would refuse in the first call outside of autocast, as far as parameters alone tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...hosts.wrappers import active_pairs
from ..advice import advice
from ..dtypes import short
from .finding import Finding, Looked
from .flow import Meeting, meetings
from .unguarded import watched

_REFUSED = "outside of autocast, in evaluation and in generate(), torch refuses the mixture of dtypes"
_OWN_CODE = "outside of autocast torch refuses the mixture of dtypes, unless the module's code casts"
_CAST, _NOT_CAST = "; with the shim it is cast", "; the shim does not cast it, for it does not watch the module"


def find(looked: Looked) -> Iterator[Finding]:
    for path, module in looked.model.named_modules():
        yield from _of_adapters(looked, path, module)
    inside = watched(looked)
    for meeting in meetings(looked.model):
        yield _finding(looked, meeting, id(meeting.module) in inside)


def _finding(looked: Looked, meeting: Meeting, is_watched: bool) -> Finding:
    kind = "mismatch" if meeting.certain else "possible mismatch"
    given, to = short(meeting.given), short(meeting.weight)
    what = f"it is given {given} hidden states, and its weight is {to}"
    say = advice(kind if is_watched else "unguarded", looked.program)
    meaning = (_REFUSED if meeting.certain else _OWN_CODE) + (_CAST if is_watched else _NOT_CAST)
    return Finding(meeting.path, type(meeting.module).__name__, kind, what, meaning, say, meeting.operation, given, to)


def _of_adapters(looked: Looked, path: str, module: Any) -> Iterator[Finding]:
    for name, a, b in active_pairs(module):
        weights = [getattr(one, "weight", None) for one in (a, b)]
        given, to = (getattr(weight, "dtype", None) for weight in weights)
        if given is None or to is None or given == to:
            continue
        what = f"its weight is {short(to)}, and lora_A, whose result it is given, is {short(given)}"
        say, where = advice("adapters", looked.program), f"{path}.{name}".lstrip(".")
        cls = type(b).__name__
        yield Finding(where, cls, "mismatch", what, _REFUSED + _CAST, say, "linear", short(given), short(to))
