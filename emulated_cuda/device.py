"""CUDA without a GPU: imported before torch and instead of a driver, see docs/cuda.md.

A tensor on ``cuda`` has the memory of the CPU (``device.cpp``). The dispatcher applies CUDA's autocast and autograd to
it as to a real one, ``x.is_cuda`` is true, and bitsandbytes, PEFT and transformers take their branches for CUDA. What
is left is computed by the CPU's kernels. Here ``torch.cuda`` is made to answer as on one H100.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

from . import build

_device = build.load()

import qlora_bf16_patch  # noqa: E402, F401  # before torch, as a user does

import torch  # noqa: E402  # isort: skip

_device.emulate(b"aten")

import bitsandbytes  # noqa: E402, F401  # isort: skip  # which would load its CUDA library if it saw the device

_device.emulate(b"bitsandbytes")

_PROPERTIES = SimpleNamespace(
    name="emulated", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, gcnArchName=""
)


class _Stream:
    """All is done at once."""

    device_index, stream_id, cuda_stream = 0, 0, 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device("cuda:0")

    def query(self) -> bool:
        return True

    def _nothing(self, *_: Any) -> None: ...

    synchronize = wait_stream = wait_event = record_event = record = wait = _nothing


class _Context(contextlib.nullcontext[None]):
    """A device or a stream that is chosen; there is one of each."""

    idx = 0


def _storage(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
    """torch's own knows CUDA in a build for it alone."""
    if device is not None and torch.device(device).type == "cuda":
        return torch.empty(*args, dtype=torch.uint8, device=device).untyped_storage()
    return torch._C.StorageBase.__new__(cls, *args, device=device, **kwargs)


def _answer(value: Any) -> Any:
    """A function of its own each time, since Dynamo wants to tell them apart."""
    return lambda *_, **__: value


# Random numbers are those of the CPU's generator, which torch.manual_seed has seeded already.
_ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "_is_in_bad_fork": False,
    "device_count": 1,
    "current_device": 0,
    "get_device_capability": (9, 0),
    "get_device_name": _PROPERTIES.name,
    "get_device_properties": _PROPERTIES,
    "get_arch_list": ["sm_90"],
    "mem_get_info": (_PROPERTIES.total_memory, _PROPERTIES.total_memory),
    "is_current_stream_capturing": False,
    **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0),
    **dict.fromkeys(("_lazy_init", "init", "set_device", "synchronize", "empty_cache", "ipc_collect"), None),
    **dict.fromkeys(("manual_seed", "manual_seed_all", "seed", "seed_all", "reset_peak_memory_stats"), None),
}


def _install() -> None:
    cuda: Any = torch.cuda
    for name, value in _ANSWERS.items():
        setattr(cuda, name, _answer(value))
    cuda._initialized = True  # gradient checkpointing then keeps the device's random state, too
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.get_rng_state_all = lambda: [torch.get_rng_state()]
    cuda.set_rng_state_all = lambda states: torch.set_rng_state(states[0])
    cuda.initial_seed = torch.initial_seed
    cuda.device = cuda.device_of = cuda.stream = _Context
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = _Stream
    torch.backends.cudnn.enabled = False
    torch.UntypedStorage.__new__ = staticmethod(_storage)
    # torch.autocast("cuda") switches itself off with a warning where it finds no GPU.
    cuda.amp.common.amp_definitely_not_available = _answer(False)


_install()
