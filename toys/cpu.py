"""Import this before layers are made, to compare bits with the unpatched libraries on every CPU.

On one with AVX512-bf16, bitsandbytes from 0.49 on repacks a 4-bit weight for good at its first evaluation, which rounds
the quantization's scales, and takes another kernel from then on. The patches keep it from doing so (contract A), so
there evaluation, and training after one, have other bits than unpatched: see ``tests/patches/test_linear4bit.py``.
"""

import qlora_bf16_patch  # isort: skip  # noqa: F401  # before the library that it patches

import bitsandbytes.nn.modules

bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
