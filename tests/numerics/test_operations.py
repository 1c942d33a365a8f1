"""Operations that torch has samples of, in mixtures of floating dtypes: docs/operations.md says what is found."""

import warnings

import pytest
import torch

from qlora_bf16_patch.numerics.mode import CastOnMismatch
from qlora_bf16_patch.numerics.rules import rule_of
from qlora_bf16_patch.numerics.rules.rule import never
from toys import devices

from .operations.asking import ask, attempt, same
from .operations.calls import every_call, of_ours, of_torchs_samples
from .operations.page import EXCUSED, PAGE, page, wrong


@pytest.fixture(scope="module")
def calls():
    with warnings.catch_warnings(), devices.default():
        warnings.simplefilter("ignore")
        if devices.TYPE == "cpu":
            return list(every_call())
        # On CUDA those alone that the rules know: what autocast casts is another there, and compiled code goes by them.
        found = [*of_torchs_samples(), *of_ours()]
        return [call for call in found if rule_of(call.entry()).refuses is not never]


@pytest.fixture(scope="module")
def findings(calls):
    return ask(calls)


def test_what_torch_refuses_is_mended_and_what_it_takes_is_left_alone(findings):
    assert len(findings) > (600 if devices.TYPE == "cpu" else 100)
    assert not wrong(findings)


@pytest.mark.cpu("the page is of it")
def test_the_page_says_what_is_found(findings):
    told = PAGE.read_text()
    if f"torch {torch.__version__.partition('+')[0]} on CPU" in told:
        assert told == page(findings)
        assert {name for name, _ in findings if findings[name, False].wrong or findings[name, True].wrong} == {*EXCUSED}
    else:  # of another torch it holds that nothing is left unmended but what the page lists
        assert all(f"`{name}`" in told for (name, _), finding in findings.items() if finding.wrong)


# Of each kind of rule one, under its name on the page.
COMPILED = ["F.linear", "matmul", "addmm", "inner", "einsum", "F.conv1d", "F.layer_norm", "F.batch_norm", "F.prelu"]
COMPILED += [
    "F.scaled_dot_product_attention",
    "cat",
    "index_copy",
    "index_add_",
    "masked_scatter",
    "Tensor.__setitem__",
    "F.grid_sample",
    "F.cross_entropy",
    "F.nll_loss",
    "F.embedding_bag",
    "linalg.cross",
    "lerp",
]


MIXTURES = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_an_operation_is_cast_exactly_where_torch_refuses_it(name, autocast, calls):
    call = [call for call in calls if call.name == name][-1]
    for first, other in MIXTURES:
        dtypes = (first, *(other,) * (len(call.operands()) - 1))
        plain, eager = (attempt(call, dtypes, autocast, mode) for mode in (None, CastOnMismatch()))

        def within(*args, under, function=call.function, **kwargs):  # Dynamo of torch 2.11 reads no field of a call
            with under:
                return function(*args, **kwargs)

        torch._dynamo.reset()
        mode = CastOnMismatch()
        compiled = torch.compile(within, backend="eager", fullgraph=True)
        with torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
            args, kwargs = call.given(dtypes)
            torch.manual_seed(0)
            result = compiled(*args, under=mode, **kwargs)
        assert same(result, eager.result), dtypes
        assert (plain.error is None) == (mode.casts == 0), dtypes
