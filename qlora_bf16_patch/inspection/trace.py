"""``qlora_bf16_patch.trace(model)``: which dtypes every module of a model met while it ran, and what was cast."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from ..hosts.given import expect_kbit_model
from ..watching import events
from ..watching.refusals import is_of_dtypes, modules_on
from .calls import Call, Here
from .casts import listening, paths_in, seen_in
from .dtypes import autocast_around, compute_of, floating_dtypes, weight_of
from .hooks import around_generate, hooked
from .observed import Ran
from .recorded import Recorded
from .refused import note_of, passed

_traced: set[int] = set()


class Trace(Recorded):
    """A context manager that records the dtypes of every module of ``model`` that runs inside of it.

    It keeps no tensor and no module. The hooks make LoRA's layers take PEFT's own forward, with the same result, and
    cost some microseconds a module; code that was compiled before is not seen. Casts are those of patches; what
    bitsandbytes, PEFT and autocast cast themselves is in the dtypes of the modules.

    Args:
        model: one with 4- or 8-bit layers, whose inputs may be of any shapes and dtypes.

    Attributes:
        ran: how often each module ran with which dtypes, in which phase.
        casts: how often which operand was cast, where and by which patch.
        refused: where torch refused dtypes, how often, and no patch mended it, though the program may have caught it.
        never_ran: paths of the modules that have not run, of those that have a weight.
        error: what torch said, and where, where the block ended with a refusal of dtypes.
        error_phase: the phase that it was in, where a module was called.

    Raises:
        TypeError: it is no module.
        ValueError: the model has no quantized layer.

    Source:
        ``Module.register_forward_hook`` with ``always_call`` (torch/nn/modules/module.py), and what patches cast.

    Examples:
        >>> [str(seen) for seen in trace.casts if seen.needed]
        ['base_model.model.lm_head: linear has its input cast from float32 to bfloat16 by peft.boundary']
        >>> [(seen.inputs, count) for seen, count in trace.ran.items() if seen.path == "base_model.model.lm_head"]
        [(('float32',), 1), (('float32',), 2)]
        >>> trace.never_ran, trace.refused, trace.error, trace.error_phase
        ((), Counter(), None, None)
    """

    FORMAT = "qlora_bf16_patch trace 1"

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        super().__init__()
        self._phase: str | None = None
        self._model = model
        self._stack = contextlib.ExitStack()
        self._here = Here()
        self._order: dict[str, int] = {}  # as they were entered first
        if model is not None:
            expect_kbit_model(model, "trace")

    def __enter__(self) -> Trace:
        model = self._model
        if model is None:
            raise RuntimeError(
                "This trace has ended, or was read from a file: make another one with qlora_bf16_patch.trace(model)."
            )
        if taken := _traced.intersection(map(id, model.modules())):
            raise RuntimeError(
                f"{type(model).__name__} is being traced already ({len(taken)} of its modules are): end that trace "
                "first, or name a phase of it, `with trace.phase(...)`."
            )
        self._paths = paths_in(model)
        _traced.update(self._paths)
        self._stack.callback(_traced.difference_update, set(self._paths))
        try:
            self._stack.enter_context(hooked(model, self._entered, self._left))
            self._stack.enter_context(around_generate(model, self._here.generation))
            self._stack.enter_context(listening(self._heard))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._stack.close()
        if isinstance(error, Exception) and is_of_dtypes(error):
            note = note_of(error, self)
            self.error_phase = note.phase if note else None
            self.error = f"{note.path if note else self._around(error)}: {str(error).splitlines()[0]}"
        phases = self.phases
        self.ran = Counter(
            dict(sorted(self.ran.items(), key=lambda item: (phases.index(item[0].phase), self._order[item[0].path])))
        )
        named = self._model.named_modules() if self._model is not None else ()
        self.never_ran = tuple(path for path, module in named if self._missed(module) and path not in self._order)
        self._model, self._here, self._paths = None, Here(), {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside of it has this phase, whatever it does.

        Args:
            name: of the phase.

        Returns:
            A context manager; it gives nothing.

        Examples:
            >>> with qlora_bf16_patch.trace(model) as trace, trace.phase("probing"):
            ...     logits = model(**inputs).logits
            >>> trace.phases
            ('probing',)
        """
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def _entered(self, path: str, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        here = self._here
        if here.running and here.running[0].path == path:  # torch calls no hook after a KeyboardInterrupt
            here.running.clear()
        if not here.running:
            here.phase = here.phase_of(module)
        values = (args, kwargs)
        self._order.setdefault(path, len(self._order))
        handled = id(sys.exc_info()[1])
        here.running.append(Call(path, floating_dtypes(values), autocast_around(values), handled))

    def _left(self, path: str, module: torch.nn.Module, result: Any) -> None:
        here = self._here
        if torch.compiler.is_compiling() or all(call.path != path for call in here.running):
            return
        while (call := here.running.pop()).path != path:
            pass  # it was left with no hook called
        error = sys.exc_info()[1]
        if result is None and error is not None and id(error) != call.handled:
            phase = self._phase or here.phase
            self.refused.update(passed(error, self, path, module, phase, out=not here.running))
            return
        weight, compute, phase = weight_of(module), compute_of(module), self._phase or here.phase
        name, outputs = type(module).__name__, floating_dtypes(result)
        self.ran[Ran(path, name, phase, call.inputs, weight, compute, call.autocast, outputs)] += 1

    def _heard(self, module: torch.nn.Module, cast: events.Cast) -> None:
        phase = self._phase or (self._here.phase if self._here.running else self._here.phase_of(module))
        seen = seen_in(self._paths, module, cast, phase)
        if seen is not None:
            self.casts[seen] += 1

    def _around(self, error: Exception) -> str:
        """Where an error came from that no hook saw: compiled code, or what runs beside the model."""
        name = type(self._model).__name__
        return name if any(id(module) in self._paths for module in modules_on(error)) else f"outside of {name}"

    def _missed(self, module: torch.nn.Module) -> bool:
        """Whether a module that has not run could have been seen: it has a weight, and was there from the start."""
        return weight_of(module) is not None and id(module) in self._paths
