"""Contracts A to E and the reported failure on a GPU."""

import copy
import subprocess
import sys

import pytest
import torch

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, HALF, linear4bit
from toys.models import lora_model

from ..checks import assert_as_under_autocast, assert_unchanged, state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(devices.NAME == "emulated" or not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("use_dora", [False, True], ids=["plain", "dora"])
@pytest.mark.parametrize("compute_dtype", HALF, ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_contracts_a_to_c_of_a_lora_layer(dtype, compute_dtype, use_dora):
    layer = lora_model(compute_dtype=compute_dtype, use_dora=use_dora).cuda().base_model.model.proj
    before = state(layer)
    for tokens in (1, 7):
        x = torch.randn(1, tokens, 64, device="cuda", dtype=dtype)
        with torch.no_grad():
            outside = layer(x)
            with torch.autocast("cuda", dtype=compute_dtype):
                inside = layer(x)
        assert_as_under_autocast(outside, inside, dtype)
    assert_unchanged(layer, before)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_contract_d_where_all_dtypes_agree(dtype):
    layer, x = linear4bit(dtype, dtype).cuda(), torch.randn(1, 7, 64, device="cuda", dtype=dtype)
    with torch.no_grad():
        with qlora_bf16_patch.disabled():
            unpatched = layer(x)
        assert torch.equal(layer(x), unpatched)


def test_contract_e_compiled_equals_eager_and_follows_a_toggle():
    torch._dynamo.reset()
    model, x = lora_model().cuda(), torch.randn(1, 7, 64, device="cuda")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        with qlora_bf16_patch.disabled(), pytest.raises(Exception, match="dtype"):
            compiled(x)
    reduced = torch.compile(copy.deepcopy(model), mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(reduced(x), model(x), atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(("arguments", "status"), [((), 1), (("--shim",), 0)], ids=["unpatched", "patched"])
def test_the_reported_script(arguments, status):
    command = [sys.executable, "examples/generate_in_callback.py", "bf16", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == status, run.stdout + run.stderr
