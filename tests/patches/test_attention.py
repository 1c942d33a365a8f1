"""torch.attention and transformers.attention: query, key, value of different dtypes, where torch would raise."""

import functools
import itertools

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2 import modeling_gpt2  # casts to the value's dtype before it multiplies
from transformers.models.qwen3 import modeling_qwen3

import qlora_bf16_patch

from .conftest import FLOATING

NAME = "torch.attention"


@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATING, repeat=3)), ids=str)
def test_attention_takes_other_dtypes_exactly_where_torch_raises(dtypes, autocast):
    torch.manual_seed(0)
    q, k, m = (torch.randn(1, 2, 4, n).to(dtype) for dtype, n in zip(dtypes, (8, 8, 4), strict=True))
    attend = functools.partial(nn.functional.scaled_dot_product_attention, attn_mask=m)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with qlora_bf16_patch.disabled(NAME):
            reference = attend(q.double(), k.double(), k.double(), attn_mask=m.double())
            try:
                unpatched = attend(q, k, k)
            except RuntimeError as error:
                assert "dtype" in str(error)
                unpatched = None
        patched = attend(q, k, k)
    if unpatched is None:
        assert patched.dtype == q.dtype
        torch.testing.assert_close(patched.double(), reference.double(), atol=2e-2, rtol=2e-2)
    else:
        assert torch.equal(patched, unpatched)
        assert patched.dtype == unpatched.dtype


def test_a_minimum_of_bfloat16_stays_finite_in_a_float16_attention():
    q, m = torch.randn(1, 1, 2, 8).half(), torch.full((2, 2), torch.finfo(torch.bfloat16).min).bfloat16()
    m[:, 0] = 0
    assert nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=m).isfinite().all()


@pytest.mark.usefixtures("strict")
def test_strict_raises_where_a_cast_would_have_papered_over_a_mismatch():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()
    with pytest.raises(TypeError, match=r"float32, torch.bfloat16, torch.bfloat16.*torch.attention"):
        nn.functional.scaled_dot_product_attention(q, k, k)
    assert nn.functional.scaled_dot_product_attention(q, q, q).dtype == torch.float32


def test_compiled_attention_equals_eager_and_a_toggle_is_honoured():
    torch._dynamo.reset()
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()

    def attend(q, k):
        return nn.functional.scaled_dot_product_attention(q, k, k)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k), attend(q, k))
    with qlora_bf16_patch.disabled(NAME), pytest.raises(Exception, match="dtype"):
        compiled(q, k)


def eager(q, k, v, model=modeling_qwen3):
    """As a model of transformers attends with ``attn_implementation="eager"``; (batch, heads, tokens, width)."""
    module = nn.Module().eval()
    module.num_key_value_groups = 1
    attend = ALL_ATTENTION_FUNCTIONS.get_interface("eager", model.eager_attention_forward)
    output, _weights = attend(module, q, k, v, None, scaling=1.0)
    return output.transpose(1, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATING, repeat=3)), ids=str)
@pytest.mark.parametrize("model", [modeling_qwen3, modeling_gpt2], ids=["qwen3", "gpt2"])
def test_eager_attention_takes_other_dtypes_exactly_where_torch_raises(model, dtypes, autocast):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8).to(dtype) for dtype in dtypes)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with qlora_bf16_patch.disabled("transformers.attention"):
            try:
                unpatched = eager(q, k, v, model)
            except RuntimeError as error:
                assert "type" in str(error)
                unpatched = None
        patched = eager(q, k, v, model)
    if unpatched is None:
        assert patched.dtype == q.dtype
        reference = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
        torch.testing.assert_close(patched.double(), reference, atol=5e-2, rtol=5e-2)
    else:
        assert torch.equal(patched, unpatched)
        assert patched.dtype == unpatched.dtype


@pytest.mark.usefixtures("strict")
def test_strict_raises_in_eager_attention_too():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()
    with pytest.raises(TypeError, match=r"float32, torch.bfloat16, torch.bfloat16.*transformers.attention"):
        eager(q, k, k)
    assert eager(q, q, q).dtype == torch.float32


def test_compiled_eager_attention_equals_eager_and_a_toggle_is_honoured():
    torch._dynamo.reset()
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, q, k), eager(q, q, k))
    with qlora_bf16_patch.disabled("transformers.attention"), pytest.raises(Exception, match="dtype"):
        compiled(q, q, k)


class Attention(nn.Module):
    def forward(self, q, k):
        return nn.functional.scaled_dot_product_attention(q, k, k)


def test_fx_sees_torchs_own_attention():
    q = torch.randn(1, 2, 4, 8)
    assert torch.equal(torch.fx.symbolic_trace(Attention())(q, q), Attention()(q, q))


def test_a_device_without_autocast_is_left_to_torch():
    q, mask = torch.randn(1, 2, 4, 8, device="meta"), torch.ones(4, 4, dtype=torch.bool, device="meta")
    assert nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).is_meta
    assert eager(q, q, q.bfloat16()).is_meta
