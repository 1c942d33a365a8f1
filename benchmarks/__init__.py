"""What the shim costs: ``python -m benchmarks [--only layer ...] [--quick]``, or ``make bench``; on a GPU if it can."""

import os

import qlora_bf16_patch  # noqa: F401  # before torch, as a user does

import torch  # isort: skip

os.environ.setdefault("TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
