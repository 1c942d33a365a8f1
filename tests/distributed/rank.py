"""One of two gloo ranks: ``python -m tests.distributed.rank FOLDER NAME...`` writes a line of JSON for each name.

It ends where a scenario raises or takes too long, since the other rank would wait for it.
"""

from __future__ import annotations

import qlora_bf16_patch  # isort: skip  # noqa: F401  # before torch, as a user does

import datetime
import faulthandler
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = float(os.environ.get("SECONDS_OF_A_SCENARIO", 120))


def _one_waits() -> dict[str, Any]:
    if dist.get_rank() == 0:
        dist.barrier()
    while True:
        pass


def _one_raises() -> dict[str, Any]:
    if dist.get_rank() == 1:
        raise ArithmeticError("of rank 1 alone")
    dist.barrier()
    return {}


def _both_end() -> dict[str, Any]:
    dist.barrier()
    return {"rank": dist.get_rank()}


STRANDED = {"one waits": _one_waits, "one raises": _one_raises, "both end": _both_end}


def scenario(name: str, folder: Path) -> Callable[[], dict[str, Any]]:
    """By its name; what it needs is imported here, and not in its time."""
    if name in STRANDED:
        return STRANDED[name]
    from . import branches, story, trainer
    from .engines import TRAINER

    if name in branches.SCENARIOS:
        return branches.SCENARIOS[name]
    return functools.partial(trainer.run, folder) if name == TRAINER else functools.partial(story.run, name, folder)


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    quiet()
    faulthandler.enable()  # so that whoever ends this process by SIGABRT sees where it stood
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # else torchrun's own rendezvous
        store = dist.FileStore(str(folder / "store"), size)
        limit = datetime.timedelta(seconds=2 * SECONDS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    scenarios = {name: scenario(name, folder) for name in names}
    for name, run in scenarios.items():
        print(f"scenario {name}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        line = json.dumps([name, run()])
        with open(folder / f"{rank}.jsonl", "a") as file:
            print(line, file=file)
    faulthandler.cancel_dump_traceback_later()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
