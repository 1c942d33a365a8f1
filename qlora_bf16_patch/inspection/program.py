"""A trace of every k-bit model of a process, from its first call to the end: ``qlora-bf16-patch run --trace FILE``.

Nobody says when an unmodified program's models are complete: PEFT, TRL and engines put modules into them and around
them. So each module is looked at when it is called for the first time. Modules are held weakly, for a program may load
one model after another.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..hosts.bitsandbytes import is_kbit_model
from ..numerics.compiling import leave_uncompiled
from ..watching import events
from ..watching.refusals import is_of_dtypes
from .calls import Here
from .dtypes import weight_of
from .hooks import hook, wrap_generate
from .observed import Ran
from .refused import note_of
from .trace import Trace

EVERY = 10  # seconds from one writing to the next, so that a process that is killed has left nearly all


class ProgramTrace(Trace):
    """Records from :meth:`start` on; :meth:`result` is the trace so far.

    Args:
        written: called with the trace where it is to be written, from time to time. It must not raise.

    Attributes:
        failure: why it has stopped to record; it never breaks the program.
    """

    def __init__(self, written: Callable[[Trace], None]) -> None:
        super().__init__()
        self.failure: str | None = None
        self._written, self._due, self._lock = written, 0.0, threading.RLock()
        self._here = _Here()
        self._paths: dict[int, str] = {}  # of modules with hooks: what stands for the path until the end
        self._names: dict[str, tuple[int, str]] = {}  # what it stands for: a model's number, and the path in it
        self._weights: list[str] = []
        self._looked_at: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._models: list[weakref.ref[torch.nn.Module]] = []
        self._classes: list[str] = []
        self._inside: dict[int, tuple[int, str]] = {}  # models that are parts of another one by now

    def start(self) -> None:
        """Look at each module of the process that is called, and hear of each cast.

        Not by torch's own global hooks: those are given no keyword arguments, and torch.compile warns of them.
        """
        call: Any = torch.nn.Module.__call__
        known, look = self._looked_at, self._look

        def looked_at(module: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling() and id(module) not in known:
                look(module)
            return call(module, *args, **kwargs)

        leave_uncompiled(looked_at.__code__, with_what_it_calls=False)
        leave_uncompiled(ProgramTrace._look.__code__)
        setattr(torch.nn.Module, "__call__", functools.update_wrapper(looked_at, call))  # noqa: B010
        events.listeners.append(self._heard)
        os.register_at_fork(after_in_child=self._forked)

    def result(self) -> Trace:
        """What was recorded, with paths as :func:`qlora_bf16_patch.trace` has them.

        Where there are several models, their classes stand before the paths.
        """
        trace = Trace()
        phases, counts, casts = self.phases, Counter(self.ran), Counter(self.casts)
        keys = [*(seen.path for seen in counts), *(cast.path for cast in casts), *(one.path for one in self.refused)]
        models = sorted({self._place(key)[0] for key in keys if key in self._names})
        prefixes = dict(_prefixes(models, self._classes))

        def named(key: str) -> str:
            if key not in self._names:  # of a cast in what is no module of its own
                return key
            number, path = self._place(key)
            return ".".join(filter(None, (prefixes.get(number), path)))

        def position(seen: Ran) -> tuple[int, int, int]:
            return phases.index(seen.phase), self._place(seen.path)[0], self._order[seen.path]

        for seen in sorted(counts, key=position):
            trace.ran[replace(seen, path=named(seen.path))] += counts[seen]
        for cast, count in casts.items():
            trace.casts[replace(cast, path=named(cast.path))] += count
        for refused, count in Counter(self.refused).items():
            trace.refused[replace(refused, path=named(refused.path))] += count
        trace.never_ran = tuple(named(key) for key in self._weights if self._missing(key, prefixes))
        error = getattr(sys, "last_value", None)  # what ends the process
        if isinstance(error, Exception) and is_of_dtypes(error):
            note = note_of(error, self)
            trace.error = f"{named(note.path) if note else type(error).__name__}: {str(error).splitlines()[0]}"
            trace.error_phase = note.phase if note else None
        return trace

    def _look(self, module: torch.nn.Module) -> None:
        """A module that was not called before."""
        try:
            with self._lock:
                self._remember(module)
                for number, model in enumerate(self._models):
                    self._put_into(number, model())
                if id(module) not in self._paths and is_kbit_model(module):
                    self._add(_outermost_around(module))
        except Exception as error:
            self._fail(error)

    def _add(self, model: torch.nn.Module) -> None:
        """A model whose modules are recorded from now on; it may hold one that is recorded already."""
        number = len(self._models)
        for other, reference in enumerate(self._models):
            part = reference()
            if part is not None and other not in self._inside and any(part is one for one in model.modules()):
                self._inside[other] = number, next(path for path, one in model.named_modules() if one is part)
        self._models.append(weakref.ref(model))
        self._classes.append(type(model).__name__)
        self._put_into(number, model)

    def _put_into(self, number: int, model: torch.nn.Module | None) -> None:
        if model is None or number in self._inside:
            return
        for path, module in model.named_modules():
            key = self._paths.get(id(module))
            if key is None:
                key = self._hook(module)
            if key not in self._names or self._names[key][0] in self._inside:
                self._names[key] = number, path

    def _hook(self, module: torch.nn.Module) -> str:
        key = f".{len(self._names)}"  # no path begins so
        for _ in (*hook(key, module, self._entered, self._left), *wrap_generate(module, self._here.generation)):
            pass  # it stays for as long as the module does
        self._remember(module)
        self._paths[id(module)] = key
        if weight_of(module) is not None:
            self._weights.append(key)
        return key

    def _remember(self, module: torch.nn.Module) -> None:
        number = id(module)
        self._looked_at[number] = weakref.ref(module, lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        self._looked_at.pop(number, None)
        self._paths.pop(number, None)

    def _place(self, key: str) -> tuple[int, str]:
        number, path = self._names[key]
        while number in self._inside:
            number, around = self._inside[number]
            path = ".".join(filter(None, (around, path)))
        return number, path

    def _missing(self, key: str, prefixes: dict[int, str]) -> bool:
        return key not in self._order and self._place(key)[0] in prefixes

    def _entered(self, path: str, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or self.failure:
            return
        try:
            super()._entered(path, module, args, kwargs)
        except Exception as error:
            self._fail(error)

    def _left(self, path: str, module: torch.nn.Module, result: Any) -> None:
        if torch.compiler.is_compiling() or self.failure:
            return
        try:
            super()._left(path, module, result)
            if not self._here.running and time.monotonic() >= self._due:
                self._write()
        except Exception as error:
            self._fail(error)

    def _heard(self, module: torch.nn.Module, cast: events.Cast) -> None:
        if self.failure:
            return
        try:
            super()._heard(module, cast)
        except Exception as error:
            self._fail(error)

    def _write(self) -> None:
        with self._lock:
            began = time.monotonic()
            self._written(self.result())
            took = time.monotonic() - began
            self._due = began + max(EVERY, 50 * took)

    def _forked(self) -> None:
        """What this process runs is its own; another thread may have held the lock."""
        self._lock, self._due = threading.RLock(), 0.0
        self.ran.clear()
        self.casts.clear()
        self.refused.clear()

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or f"{type(error).__name__}: {error}"


class _Here(Here):
    def phase_of(self, module: torch.nn.Module) -> str:
        """A first ``generate`` runs already when its model is seen."""
        return "generation" if any(name == "generate" for name, _ in _methods()) else super().phase_of(module)


def _methods() -> Iterator[tuple[str, torch.nn.Module]]:
    """Names of the methods of modules that are running in this thread, the innermost first, and their modules."""
    frame = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames[:1]:
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.nn.Module):
                yield frame.f_code.co_name, owner
        frame = frame.f_back  # type: ignore[assignment]


def _outermost_around(module: torch.nn.Module) -> torch.nn.Module:
    """The model that ``module`` is called in: ``PeftModel.generate`` calls the module inside."""
    around = [owner for _, owner in _methods() if any(part is module for part in owner.modules())]
    return around[-1] if around else module


def _prefixes(models: list[int], classes: list[str]) -> Iterator[tuple[int, str]]:
    seen: Counter[str] = Counter()
    for number in models:
        name = classes[number]
        seen[name] += 1
        prefix = name if seen[name] == 1 else f"{name}-{seen[name]}"
        yield number, prefix if len(models) > 1 else ""
