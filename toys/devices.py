"""The device that the tests run on, by the environment: ``TEST_DEVICE=cpu``, the default, ``cuda`` or ``emulated``.

A test says nothing of it: on CUDA what it makes is made there by default. A k-bit layer alone is made on the CPU, as
bitsandbytes wants it, and quantized when it is moved.
"""

import contextlib
import os

from emulated_cuda import build

NAME = os.environ.get("TEST_DEVICE", "cpu")
if NAME not in ("cpu", "cuda", "emulated"):
    raise ValueError(f"TEST_DEVICE is cpu, cuda or emulated, and not {NAME}")

MISSING = "" if NAME != "emulated" or build.compiler() else "the emulated CUDA device needs a C++ compiler"
if NAME == "emulated" and not MISSING:
    from emulated_cuda import device  # noqa: F401  # before torch

import qlora_bf16_patch  # noqa: E402, F401  # before torch, as a user does

import torch  # noqa: E402  # isort: skip

if NAME == "cuda" and not torch.cuda.is_available():
    MISSING = "needs a CUDA GPU"
if NAME == "cuda" and not MISSING:
    torch.backends.cudnn.deterministic = True  # else a convolution's backward has other bits each time
# Where it is missing tests are skipped, and must be found for it.
TYPE = "cpu" if NAME == "cpu" or MISSING else "cuda"
if TYPE == "cpu":
    # torch.manual_seed has each note a traceback, for a device that may come later: two milliseconds of a test's.
    for _name in ("cuda", "xpu", "mtia"):
        if hasattr(torch, _name):
            getattr(torch, _name).manual_seed_all = lambda seed: None


def default():
    """Inside it, tensors are made on the device."""
    return _made_on(TYPE)


def generator(seed):
    """Of random numbers on the device, where CUDA refuses the CPU's."""
    return torch.Generator(TYPE).manual_seed(seed)


def on_cpu():
    """Inside it, tensors are made on the CPU, for a k-bit layer that is moved then."""
    return _made_on("cpu")


def _made_on(device):
    # No mode where none is needed: some tests look at those that are on.
    return contextlib.nullcontext() if TYPE == "cpu" else torch.device(device)
