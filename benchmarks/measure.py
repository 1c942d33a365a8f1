"""Ratios of interleaved runs, counts of dispatched operations, peak memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from toys.conditions import CONDITIONS, Counter, unpatched

Run = Callable[[], Any]


@dataclass
class Measured:
    """One condition of a row: seconds a call, its ratio to unpatched (median and quartiles), operations, peak bytes.

    ``kernels`` are launches on a GPU, ``failure`` is what was raised instead.
    """

    seconds: float = 0.0
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    operations: int = 0
    kernels: int = 0
    peak_bytes: int = 0
    failure: str = ""


def measure(runs: dict[str, Run], rounds: int, seconds: float, limit: float) -> dict[str, Measured]:
    """Measure every condition side by side.

    Args:
        runs: what to call under each of ``CONDITIONS``; one named otherwise ("floor") runs unpatched.
        rounds: every round runs each condition once, in an order that rotates; a ratio is one of the same round.
        seconds: about how long one condition of one round takes.
        limit: seconds for the whole row; where a call is slow, there are fewer rounds, but five.
    """
    results: dict[str, Measured] = {}
    for name, run in runs.items():
        with CONDITIONS.get(name, unpatched)():
            results[name] = _counted(run)
    alive = [name for name in runs if not results[name].failure]
    once = {name: _timed(runs[name], CONDITIONS.get(name, unpatched), 1) for name in alive}
    calls = max(1, int(seconds / max(once.values())))
    rounds = max(5, min(rounds, int(limit / sum(once.values()) / (calls + 1))))
    times: dict[str, list[float]] = {name: [] for name in alive}
    for turn in range(rounds):
        shift = turn % len(alive)
        for name in alive[shift:] + alive[:shift]:
            times[name].append(_timed(runs[name], CONDITIONS.get(name, unpatched), calls))
    for name in alive:
        results[name].seconds = statistics.median(times[name])
        if "unpatched" in alive:
            ratios = [ours / theirs for ours, theirs in zip(times[name], times["unpatched"], strict=True)]
            low, results[name].ratio, high = statistics.quantiles(ratios, n=4)
            results[name].quartiles = (low, high)
    return results


def _counted(run: Run) -> Measured:
    """Operations and peak memory of one call; two calls come before, since the first ones set things up."""
    try:
        run()
        run()
    except RuntimeError as error:
        return Measured(failure=str(error).splitlines()[0])
    with Counter() as counter:
        run()
    peak, kernels = counter.peak, 0
    if torch.cuda.is_available():
        kernels = _kernels(run)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peak = torch.cuda.max_memory_allocated() - before
    return Measured(operations=counter.operations, kernels=kernels, peak_bytes=peak)


def _kernels(run: Run) -> int:
    """How often one call launches a kernel, copies of memory included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        _synchronize()
    averages = profile.key_averages()
    return sum(event.count for event in averages if event.device_type == torch.autograd.DeviceType.CUDA)


def _timed(run: Run, condition: Callable[[], contextlib.AbstractContextManager[Any]], calls: int) -> float:
    with condition():
        run()
        return clocked(run, calls)


def clocked(run: Run, calls: int = 1) -> float:
    """Seconds of a call: on one thread of a CPU those that the thread computed, whatever else the machine does."""
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    _synchronize()
    start = clock()
    for _ in range(calls):
        run()
    _synchronize()
    return (clock() - start) / calls


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
