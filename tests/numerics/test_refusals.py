"""What the mode does not mend is torch's own refusal, and nothing was written to."""

import warnings

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
