"""What a process has exchanged with others; whole engines are in tests/distributed."""

import types

import torch.distributed as dist

from qlora_bf16_patch.numerics.collectives import exchanged


class Group:
    def __init__(self, number):
        self.number = number

    def _get_sequence_number_for_group(self):
        if self.number is None:
            raise RuntimeError("this backend does not count")
        return self.number


def test_a_group_that_does_not_count_hides_no_other(monkeypatch):
    assert exchanged() == []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    world = types.SimpleNamespace(pg_map=[Group(3), Group(None), Group(5)])
    monkeypatch.setattr(dist.distributed_c10d, "_world", world)
    assert exchanged() == [3, 5]
