"""The casts in one model, heard for as long as somebody listens; no hook, and no tensor is kept."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Iterator

import torch

from ..numerics.places import modules_around
from ..watching import events
from .dtypes import short
from .observed import CastSeen


def paths_in(model: torch.nn.Module) -> dict[int, str]:
    """The path of each module by its id."""
    return {id(module): path for path, module in model.named_modules()}


def seen_in(paths: dict[int, str], module: torch.nn.Module, cast: events.Cast, phase: str = "") -> CastSeen | None:
    """A cast around which ``module`` is the innermost one; None where it is another model's.

    A module that was put into the model since has the path that the cast tells, or that of the module around it.
    """
    path = paths.get(id(module))
    if path is None:
        around = next((paths[id(one)] for one in modules_around() if id(one) in paths), None)
        if around is None:
            return None
        path = cast.path or around
    dtypes = (short(cast.given), short(cast.to))
    return CastSeen(
        path or cast.path, cast.module, phase, cast.operation, cast.operand, *dtypes, cast.patch, cast.needed
    )


class Casts:
    """Counts the casts in ``model`` by which torch was kept from raising.

    Attributes:
        seen: how often which operand was cast, where and by which patch.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen: Counter[CastSeen] = Counter()
        self._paths = paths_in(model)
        # Another model's module may have the number of one that is gone.
        self._modules = [weakref.ref(one, functools.partial(_forget, self._paths, id(one))) for one in model.modules()]

    def heard(self, module: torch.nn.Module, cast: events.Cast) -> None:
        """A listener of :mod:`..watching.events`."""
        seen = seen_in(self._paths, module, cast)
        if seen is not None and cast.needed:
            self.seen[seen] += 1


def _forget(paths: dict[int, str], number: int, _: object) -> None:
    paths.pop(number, None)


def listen_for(casts: Casts) -> None:
    """Let ``casts`` hear all there is for as long as anybody holds it: not everybody is told when to stop."""
    method = weakref.WeakMethod(casts.heard)

    def heard(module: torch.nn.Module, cast: events.Cast) -> None:
        alive = method()
        if alive is not None:
            alive(module, cast)

    events.listeners.append(heard)
    weakref.finalize(casts, events.listeners.remove, heard)


@contextlib.contextmanager
def listening(listener: events.Listener) -> Iterator[None]:
    """Call ``listener`` at each cast that is made inside of it."""
    events.listeners.append(listener)
    try:
        yield
    finally:
        events.listeners.remove(listener)
