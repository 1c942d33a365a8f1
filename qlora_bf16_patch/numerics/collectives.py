"""What a process has exchanged with others: a call that did so must not be run again where theirs is not."""

from __future__ import annotations

import contextlib
from typing import Any

import torch.distributed as dist


def exchanged() -> list[int]:
    """How many collectives this process has been in, by process group; nothing outside of any.

    An engine that shards parameters gathers them inside of a forward (FSDP, ZeRO-3). Which one it is does not matter.
    """
    if not dist.is_available() or not dist.is_initialized():
        return []
    groups: Any = dist.distributed_c10d._world.pg_map
    counted = []
    for group in groups:
        with contextlib.suppress(RuntimeError):  # a backend that does not count (MPI's)
            counted.append(group._get_sequence_number_for_group())
    return counted
