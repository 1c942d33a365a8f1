"""peft.tuners and peft.lora.linear8bit: every method that the installed PEFT can put on a k-bit layer."""

import re

import pytest
import torch
from peft import PeftType

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, HALF, autocast
from toys.methods import OUT_OF_REACH, adapted, every_method, methods

from ..checks import assert_unchanged, state

# Measured on peft 0.21.2; a release that mends one shows here.
MISMATCHING = {
    ("HIRA", 4),
    ("HIRA", 8),
    ("PVERA", 4),
    ("PVERA", 8),
    ("SHIRA", 4),
    ("SHIRA", 8),
    ("VERA", 4),
    ("VERA", 8),
}
MISMATCHING |= {("ADALORA", 8)}
LEAKING = {(name, 4) for name in ("IA3", "PVERA", "RANDLORA", "ROAD", "SHIRA")}
LEAKING |= {(name, 8) for name in ("ADALORA", "BEFT", "HIRA", "IA3", "LILY", "LORA", "PEANUT", "PVERA", "RANDLORA")}
LEAKING |= {("ROAD", 8), ("SHIRA", 8)}
if devices.TYPE == "cuda":  # PEFT asks whether CUDA's autocast is on, and then casts nothing back
    MISMATCHING |= {("RANDLORA", 4), ("RANDLORA", 8)}
    LEAKING |= {("HIRA", 4), ("LORA", 4)}
    LEAKING -= {("BEFT", 8), ("LILY", 8), ("PEANUT", 8)}  # 8-bit layers train on integers, and give their input's back


METHODS = [pytest.param(*case, id="-".join(map(str, case))) for case in every_method()]
REACHABLE = [case for case in METHODS if case.values in methods()]
ROWS = {9: MISMATCHING, 10: LEAKING, 13: {("LORA", 8)}}  # of docs/failures.md
REPORTED = [
    pytest.param(
        *case.values, id=case.id, marks=[pytest.mark.failure(row=row) for row in ROWS if case.values in ROWS[row]]
    )
    for case in REACHABLE
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # advice on a method's options


def outcome(method, bits):
    """What a training step and an evaluation raise together, as text."""
    raised = ""
    for training in (False, True):
        try:
            adapted(method, bits).train(training)(torch.randn(2, 3, 64))
        except Exception as error:
            raised += f"{type(error).__name__}: {error}\n"
    return raised


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_what_is_listed_as_out_of_reach_is_and_nothing_else(method, bits):
    with qlora_bf16_patch.disabled():
        unpatched = outcome(method, bits)
    reason = OUT_OF_REACH.get((method, bits))
    if reason is None:
        assert outcome(method, bits) == ""
    else:
        assert re.search(reason, unpatched), unpatched
        assert re.search(reason, outcome(method, bits))


@pytest.mark.parametrize("adapter_dtype", FLOATING, ids=str)
@pytest.mark.parametrize(("method", "bits"), REPORTED)
def test_a_layer_computes_as_under_autocast_gives_the_dtype_back_and_mutates_nothing(method, bits, adapter_dtype):
    for compute_dtype in FLOATING if bits == 4 else FLOATING[:1]:
        model = adapted(method, bits, adapter_dtype, compute_dtype=compute_dtype)
        layer = model.base_model.model.proj
        model(torch.randn(2, 3, 64).to(adapter_dtype))  # some keep what their first call computes
        before = state(model)
        for dtype in FLOATING:
            x = torch.randn(2, 3, 64).to(dtype)
            with torch.no_grad():
                torch.manual_seed(0)
                outside = layer(x)
                with autocast(compute_dtype if bits == 4 else dtype):
                    torch.manual_seed(0)
                    inside = layer(x)
            assert outside.dtype == dtype
            assert torch.equal(outside, inside.to(dtype))  # under autocast upstream's own dtype stands
        assert_unchanged(model, before)


@pytest.mark.parametrize(("method", "bits"), REACHABLE)
def test_where_all_dtypes_are_float32_the_bits_are_the_unpatched_ones(method, bits):
    model, x = adapted(method, bits, compute_dtype=torch.float32), torch.randn(2, 3, 64)
    with torch.no_grad():
        with qlora_bf16_patch.disabled():
            torch.manual_seed(0)
            if (method, bits) == (PeftType.RANDLORA, 8) and devices.TYPE == "cuda":  # its matrices are in bfloat16
                with pytest.raises(RuntimeError, match="same dtype"):
                    model(x)
                return
            unpatched = model(x)
        torch.manual_seed(0)
        assert torch.equal(model(x), unpatched)


@pytest.mark.parametrize(("method", "bits"), REACHABLE)
def test_half_precisions_compute_what_float32_does_within_their_rounding(method, bits):
    model, x = adapted(method, bits), torch.randn(2, 3, 64)
    with torch.no_grad():
        torch.manual_seed(0)
        reference = adapted(method, bits, compute_dtype=torch.float32)(x)
        for dtype in HALF:
            torch.manual_seed(0)
            result = model(x.to(dtype)).float()
            assert (result - reference).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.parametrize(("method", "bits"), REACHABLE)
def test_a_backward_runs_where_the_unpatched_one_does(method, bits):
    for adapter_dtype in HALF:
        for dtype in FLOATING:
            model, x = adapted(method, bits, adapter_dtype).train(), torch.randn(2, 3, 64).to(dtype)
            try:
                with qlora_bf16_patch.disabled():
                    model(x).float().sum().backward()
            except RuntimeError:
                continue
            model(x).float().sum().backward()


@pytest.mark.parametrize(("method", "bits"), REACHABLE)
def test_unpatched_a_method_mismatches_or_leaks_another_dtype(method, bits):
    found = set()
    with qlora_bf16_patch.disabled():
        for adapter_dtype in (torch.float32, torch.bfloat16):
            model = adapted(method, bits, adapter_dtype)
            for dtype in FLOATING:
                for training in (False, True):
                    for region in (None, torch.bfloat16):
                        with autocast(region):
                            try:
                                result = model.train(training)(torch.randn(2, 3, 64).to(dtype))
                            except RuntimeError as error:
                                assert "dtype" in str(error)
                                found.add("mismatch")
                            else:
                                found |= {"leak"} if result.dtype != dtype else set()
    case = (method, bits)
    assert ("mismatch" in found, "leak" in found) == (case in MISMATCHING, case in LEAKING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "bits"), REACHABLE)
def test_compiled_equals_eager_where_the_unpatched_layer_compiles(method, bits):
    model, x = adapted(method, bits, bias=False), torch.randn(2, 3, 64).bfloat16()

    def compiled():
        torch._dynamo.reset()
        with torch.no_grad():
            return torch.compile(model, fullgraph=True, backend="eager")(x)

    try:
        with qlora_bf16_patch.disabled():
            compiled()
    except Exception:
        pytest.skip("unpatched it does not compile without a graph break, or mismatches")
    with torch.no_grad():
        assert torch.equal(compiled(), model(x))


@pytest.mark.cpu("under CUDA's autocast PEFT casts nothing back, and torch refuses nothing")
@pytest.mark.parametrize("method", [PeftType.ROAD, PeftType.WAVEFT])
def test_autocast_in_another_half_precision_than_the_adapters_and_the_layers(method):
    layer = adapted(method, 4, torch.float16, compute_dtype=torch.float16).base_model.model.proj
    for dtype in FLOATING:
        x = torch.randn(2, 64).to(dtype)
        with autocast(torch.bfloat16):
            with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="ScalarType"):
                layer(x)
            assert layer(x).dtype == dtype
