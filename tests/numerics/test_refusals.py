"""What the mode does not mend is torch's own refusal, and nothing was written to."""

import gc
import warnings
import weakref

import pytest
import torch

from qlora_bf16_patch.numerics.mode import CastOnMismatch

from .operations.asking import AsCompiled

F32, BF16 = torch.float32, torch.bfloat16

OPERATIONS = {
    "no floating operand": lambda: torch.mm(torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.int32)),
    "a list that is written to": lambda: torch._foreach_lerp_([torch.ones(2)], [torch.ones(2, dtype=BF16)], 0.5),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_no_cast_can_mend_raises_as_without_the_mode(operation):
    with pytest.raises(RuntimeError) as plain:
        operation()
    mode = CastOnMismatch()
    with pytest.raises(RuntimeError) as under, mode:
        operation()
    assert (str(under.value), mode.casts) == (str(plain.value), 0)


@pytest.mark.parametrize("kind", [CastOnMismatch, AsCompiled])
def test_a_cast_that_may_not_be_made_is_torchs_refusal(kind):
    x, weight, asked = torch.ones(2, 4), torch.ones(3, 4, dtype=BF16), []
    mode = kind(lambda *told: asked.append(told))  # which says no
    with pytest.raises(RuntimeError, match="dtype"), mode:
        torch.nn.functional.linear(x, weight)
    assert len(asked) == 1
    assert mode.casts == 0


@torch.library.custom_op("qlora_bf16_patch_tests::fail_in_float32", mutates_args=())
def fail_in_float32(x: torch.Tensor, y: torch.Tensor, error: str) -> torch.Tensor:
    if x.dtype == y.dtype == F32:
        raise torch.cuda.OutOfMemoryError(error) if "CUDA" in error else RuntimeError(error)
    if x.dtype != y.dtype:
        raise RuntimeError("expected x and y to have the same dtype")
    return x + y


OF_OTHER_THINGS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nC++ traceback: c10::ScalarType",
    "shape '[4, 5]' is invalid",
]


@pytest.mark.parametrize("message", OF_OTHER_THINGS)
def test_an_error_of_the_cast_operation_about_something_else_comes_through_alone(message):
    with pytest.raises(RuntimeError) as raised, CastOnMismatch():
        fail_in_float32(torch.ones(2), torch.ones(2, dtype=BF16), message)
    assert str(raised.value) == message
    assert isinstance(raised.value, torch.cuda.OutOfMemoryError) == ("CUDA" in message)
    assert raised.value.__context__ is None
    assert not hasattr(raised.value, "__notes__")


def test_an_operation_without_a_kernel_in_the_widest_dtype_runs_in_that_of_another_operand():
    with CastOnMismatch() as mode:
        result = fail_in_float32(torch.ones(2), torch.ones(2, dtype=BF16), "not implemented for 'Float'")
    assert (result.tolist(), result.dtype, mode.casts) == ([2, 2], F32, 2)


def test_a_cast_operation_that_runs_out_of_memory_raises_torchs_error_alone():
    x, weight = torch.ones(1).expand(2**24, 1), torch.ones(2**24, 1, dtype=BF16)
    with pytest.raises(RuntimeError, match="allocate") as raised, CastOnMismatch():
        torch.nn.functional.linear(x, weight)  # a result of 512 TiB, which no address space has
    assert raised.value.__context__ is None


@pytest.mark.parametrize("fixed", [True, False])
def test_no_operand_is_kept_until_the_garbage_collector_runs(fixed):
    x, weight = torch.ones(2, 4), torch.ones(3, 4, dtype=BF16)
    kept = weakref.ref(x)
    gc.disable()
    try:
        with CastOnMismatch(lambda *_: fixed):
            try:
                torch.nn.functional.linear(x, weight)
            except RuntimeError:
                assert not fixed
        del x
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("to", [BF16, torch.uint8])
def test_while_torch_jit_traces_a_cast_of_the_models_own_is_left_alone_and_a_truncation_known(to):
    x, modes = torch.tensor([[1.5, 200.0]]), []

    def cast(x):
        modes.append(CastOnMismatch())
        with modes[-1]:
            return x.to(to)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(cast, (x,), check_trace=False)
    assert torch.equal(traced(x), x.to(to))
    assert traced(x).dtype == to
    assert len(modes[0].truncated) == (to is torch.uint8)
