"""Whether this release of a library still needs a patch: each of its promises is run without it and with it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import operator
import warnings
from collections.abc import Iterable, Iterator

from .. import disabled, enabled
from ..defects.promise import Promise
from ..engine.patch import Patch
from ..watching.refusals import is_of_dtypes


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a promise.

    Attributes:
        promise: its text.
        itself: whether it holds with every patch off; None where it could not be asked.
        patched: whether it holds with the patch on.
        error: why it could not be asked.
    """

    promise: str
    itself: bool | None
    patched: bool | None
    error: str = ""


def promises(patch: Patch) -> tuple[Promise, ...]:
    """Those that a patch names; whatever the module's import raises comes through."""
    module, _, function = patch.promises.partition(":")
    found: tuple[Promise, ...] = operator.attrgetter(function)(importlib.import_module(module))() if module else ()
    return found


def answers(patch: Patch) -> list[Answer]:
    """Run each promise of a patch, off and on. The process' own switches are as before after it."""
    return [_asked(patch.name, promise) for promise in promises(patch)]


def sentence(patch: Patch, version: str | None, asked: Iterable[Answer]) -> str:
    """What the answers say, for a reader."""
    asked = list(asked)
    library = f"{patch.distribution} {version}"
    own = [answer.promise for answer in asked if answer.itself]
    ours = [answer.promise for answer in asked if answer.itself is False and answer.patched]
    broken = [answer.promise for answer in asked if answer.patched is False]
    unknown = [f"whether {library} {answer.promise} ({answer.error})" for answer in asked if answer.error]
    told = []
    if own and ours:
        told.append(f"{library} {_listed(own)} itself; only with this patch it {_listed(ours)}")
    elif ours:
        told.append(f"only with this patch {library} {_listed(ours)}")
    elif own and not broken and not unknown:
        told.append(f"{library} {_listed(own)} itself: it does not need this patch for any of what was asked")
    elif own:
        told.append(f"{library} {_listed(own)} itself")
    if broken:
        told.append(f"it does not hold here with the patch on that it {_listed(broken)}")
    if unknown:
        told.append(f"could not be asked here: {'; '.join(unknown)}")
    return "; ".join(told)


def can_go(patch: Patch, version: str | None, asked: Iterable[Answer]) -> str:
    """That this release does all of it by itself; empty where it does not, or where that could not be asked."""
    asked = list(asked)
    if not asked or not all(answer.itself for answer in asked):
        return ""
    return f"{patch.distribution} {version} does all of it by itself: {patch.name} can go"


def _asked(name: str, promise: Promise) -> Answer:
    with _quiet():
        with disabled(force=True):
            itself, first = _held(promise)
        # With the others, whatever the environment says: LoRA's layer computes as it trained on a layer that does.
        with enabled(force=True), enabled(name, force=True):
            patched, second = _held(promise)
    return Answer(promise.text, itself, patched, first or second)


def _held(promise: Promise) -> tuple[bool | None, str]:
    """Whether it holds, and why it could not be asked."""
    try:
        return promise.holds(), ""
    except Exception as error:
        if is_of_dtypes(error):
            return False, ""
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say of toys is nobody's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:-1]) + (" and " if texts[1:] else "") + texts[-1]
