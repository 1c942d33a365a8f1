"""What torch does with a mixture of dtypes, and what it does under the mode."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from qlora_bf16_patch.numerics.mode import CastOnMismatch
from qlora_bf16_patch.numerics.rules import rule_of
from qlora_bf16_patch.numerics.rules.rule import never
from toys import devices

from .calls import Call

Dtypes = tuple[torch.dtype, ...]
HALF = (torch.bfloat16, torch.float16)
NOTHING = contextlib.nullcontext()
FLOATING = (torch.float32, *HALF)


# They read a bias of another dtype as if it had the right one, so that two calls give two results (torch 2.13.0).
UNDEFINED = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")


class AsCompiled(CastOnMismatch):
    """Decides as while Dynamo traces: by the rules alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._unasked(func, args, kwargs or {})


@dataclasses.dataclass
class Outcome:
    """A call's result or error, and its operands afterwards."""

    result: Any
    error: Exception | None
    operands: list[torch.Tensor]
    casts: int = 0


@dataclasses.dataclass
class Finding:
    """What was found of an operation, outside or under autocast."""

    mixtures: int = 0
    refused: int = 0
    rule: str = ""
    uncompiled: int = 0  # how many of those the rules do not know of without asking torch
    random: bool = False
    wrong: list[str] = dataclasses.field(default_factory=list)
    messages: set[str] = dataclasses.field(default_factory=set)


def mixtures(n: int) -> Iterator[Dtypes]:
    """All of them for up to three operands; for more, one or half of the operands in another dtype than the rest."""
    if n <= 3:
        yield from (dtypes for dtypes in itertools.product(FLOATING, repeat=n) if len(set(dtypes)) > 1)
        return
    for rest, other in itertools.permutations(FLOATING, 2):
        for others in (*({at} for at in range(n)), set(range(1, n)), set(range(n // 2, n))):
            yield tuple(other if at in others else rest for at in range(n))


def attempt(call: Call, dtypes: Dtypes, autocast: bool, mode: CastOnMismatch | None = None, seed: int = 0) -> Outcome:
    args, kwargs = call.given(dtypes)
    with torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
        outcome = run(call.function, args, kwargs, NOTHING if mode is None else mode, seed)
    outcome.casts = mode.casts if mode is not None else 0
    return outcome


def run(function: Any, args: Any, kwargs: Any, context: Any = NOTHING, seed: int = 0) -> Outcome:
    operands = tensors((args, kwargs))
    torch.manual_seed(seed)
    try:
        with context:
            return Outcome(function(*args, **kwargs), None, operands)
    except Exception as error:
        return Outcome(None, error, operands)


def precise(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def tensors(tree: Any) -> list[torch.Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [leaf if leaf.layout == torch.strided else leaf.to_dense() for leaf in leaves]


def same(first: Any, second: Any) -> bool:
    """Whether they have the same bits."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs)


def distance(found: Any, expected: Any) -> float:
    """The largest difference, in parts of the largest number that is expected."""
    largest = 0.0
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        if not (b.is_floating_point() or b.is_complex()) or not b.numel():
            continue
        wide = torch.complex128 if b.is_complex() else torch.float64
        a, b = (tensor.to(wide).nan_to_num(0, 0, 0) for tensor in (a, b))
        largest = max(largest, float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)))
    return largest


class Asked:
    """One call, asked about in all mixtures, outside or under autocast."""

    def __init__(self, call: Call, autocast: bool, finding: Finding) -> None:
        self.call, self.autocast, self.finding = call, autocast, finding
        self.n = len(call.operands())
        self.uniform: dict[torch.dtype, Outcome] = {}
        rule = rule_of(call.entry())
        self.modes = [CastOnMismatch] if rule.refuses is never else [CastOnMismatch, AsCompiled]
        finding.rule = rule.dtypes.__name__

    def ask(self) -> None:
        precise = (torch.float64,) * self.n
        one, other = (attempt(self.call, precise, False, seed=seed) for seed in range(2))
        self.is_random = one.error is not None or not same(one.result, other.result)
        self.finding.random |= self.is_random and self._in(torch.float32).error is None
        for dtypes in mixtures(self.n):
            self.finding.mixtures += 1
            plain = attempt(self.call, dtypes, self.autocast)
            if plain.error is None:
                for kind in self.modes:
                    self._is_left_alone(dtypes, plain, kind())
            elif any(self._in(dtype).error is None for dtype in dtypes):
                self.finding.refused += 1
                self.finding.messages.add(str(plain.error))
                for kind in self.modes:
                    self._is_mended(dtypes, kind())
                self.finding.uncompiled += len(self.modes) == 1

    def _in(self, dtype: torch.dtype) -> Outcome:
        if dtype not in self.uniform:
            self.uniform[dtype] = attempt(self.call, (dtype,) * self.n, self.autocast)
        return self.uniform[dtype]

    def _wrong(self, dtypes: Dtypes, mode: CastOnMismatch, what: str) -> None:
        where = " under autocast" * self.autocast + " while compiling" * isinstance(mode, AsCompiled)
        spoken = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        self.finding.wrong.append(f"{self.call.name} of {spoken}{where}: {what}")

    def _is_left_alone(self, dtypes: Dtypes, plain: Outcome, mode: CastOnMismatch) -> None:
        seen = attempt(self.call, dtypes, self.autocast, mode)
        if seen.error is not None or seen.casts:
            self._wrong(dtypes, mode, f"torch takes it, and it was cast ({seen.error})")
        elif not same(plain.result, seen.result) or not same(plain.operands, seen.operands):
            if self.call.name not in UNDEFINED:
                self._wrong(dtypes, mode, "other bits than torch's")

    def _is_mended(self, dtypes: Dtypes, mode: CastOnMismatch) -> None:
        mended = attempt(self.call, dtypes, self.autocast, mode)
        if mended.error is not None:
            if isinstance(mode, AsCompiled):
                self.finding.uncompiled += 1
            else:
                self._wrong(dtypes, mode, f"not mended ({str(mended.error)[:200]})")
            return
        exact, before = self._exactly(dtypes), tensors(self.call.given(dtypes))
        written = exact.error is None and not same(exact.operands, [precise(tensor) for tensor in before])
        for was, now in zip(before, mended.operands, strict=True):
            if was.dtype != now.dtype or (not written and not same(was, now)):
                self._wrong(dtypes, mode, "an operand of the caller's was written to")
        if self.is_random or exact.error is not None:
            return
        most = 4 * self._error_of_torchs_own(dtypes) + 2**-4
        if distance(mended.result, exact.result) > most:
            self._wrong(dtypes, mode, f"far from float64: {distance(mended.result, exact.result):.3f}")
        if written and distance(mended.operands, exact.operands) > most:
            self._wrong(dtypes, mode, "what it writes to holds something else")

    @functools.cache  # noqa: B019 (it lives as long as one call's questions)
    def _exactly(self, dtypes: Dtypes) -> Outcome:
        """In float64, of operands that were rounded to these dtypes."""
        flat, spec = pytree.tree_flatten(self.call.given(dtypes))
        args, kwargs = pytree.tree_unflatten([precise(leaf) for leaf in flat], spec)
        return run(self.call.function, args, kwargs)

    def _error_of_torchs_own(self, dtypes: Dtypes) -> float:
        """The largest, where all operands have one of these dtypes."""
        possible = [dtype for dtype in dict.fromkeys(dtypes) if self._in(dtype).error is None]
        return max(distance(self._in(dtype).result, self._exactly((dtype,) * self.n).result) for dtype in possible)


def ask(calls: Iterable[Call], tell: Callable[[str], None] = lambda name: None) -> dict[tuple[str, bool], Finding]:
    """Findings by an operation's name, and whether under autocast."""
    findings: dict[tuple[str, bool], Finding] = collections.defaultdict(Finding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in calls:
            tell(call.name)
            for autocast in (False, True):
                Asked(call, autocast, findings[call.name, autocast]).ask()
    return dict(findings)
