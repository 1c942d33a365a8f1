"""What torch would refuse in the first call outside of autocast, as far as parameters alone tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...hosts.wrappers import active_pairs
from ..advice import advice
from ..dtypes import short
from .finding import Finding, Looked
from .flow import Meeting, meetings

_REFUSED = "outside of autocast, in evaluation and in generate(), torch refuses the mixture of dtypes; with the shim it is cast"
_OWN_CODE = (
    "outside of autocast torch refuses the mixture of dtypes, unless the module's code casts; with the shim it is cast"
)


def find(looked: Looked) -> Iterator[Finding]:
    for path, module in looked.model.named_modules():
        yield from _of_adapters(looked, path, module)
    for meeting in meetings(looked.model):
        yield _finding(looked, meeting)


def _finding(looked: Looked, meeting: Meeting) -> Finding:
    kind = "mismatch" if meeting.certain else "possible mismatch"
    given, to = short(meeting.given), short(meeting.weight)
    what = f"it is given {given} hidden states, and its weight is {to}"
    say = advice(kind, looked.program)
    meaning = _REFUSED if meeting.certain else _OWN_CODE
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
        yield Finding(where, cls, "mismatch", what, _REFUSED, say, "linear", short(given), short(to))
