"""peft.boundary: attention of query, key and value in different dtypes, in k-bit models, where torch would raise."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.gpt2 import modeling_gpt2  # casts to the value's dtype before it multiplies
from transformers.models.qwen3 import modeling_qwen3

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING
from toys.models import Alone, lora_model

NAME = "peft.boundary"


class Attention(nn.Module):
    def forward(self, q, k, v, mask=None):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Eager(nn.Module):
    """As a model of transformers attends with ``attn_implementation="eager"``; (batch, heads, tokens, width)."""

    num_key_value_groups = 1

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, q, k, v):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("eager", self.model.eager_attention_forward)
        output, _weights = attend(self, q, k, v, None, scaling=1.0)
        return output.transpose(1, 2)


def inside_a_kbit_model(attention):
    return lora_model(toy=Alone(attention))


def attempt(model, *tensors):
    """The result; None where torch refuses the dtypes."""
    try:
        return model(*tensors)
    except RuntimeError as error:
        assert "type" in str(error), error
        return None


@pytest.mark.failure(row=3)
@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
def test_attention_takes_other_dtypes_exactly_where_torch_raises(autocast):
    model = inside_a_kbit_model(Attention())
    for dtypes in itertools.product(FLOATING, repeat=3):
        torch.manual_seed(0)
        q, k, m = (torch.randn(1, 2, 4, n).to(dtype) for dtype, n in zip(dtypes, (8, 8, 4), strict=True))
        reference = Attention()(q.double(), k.double(), k.double(), m.double())
        with torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
            with qlora_bf16_patch.disabled(NAME):
                unpatched = attempt(model, q, k, k, m)
            for patched in (attempt(model, q, k, k, m) for _ in range(2)):
                if unpatched is None:
                    assert patched.dtype == q.dtype, dtypes
                    torch.testing.assert_close(patched.double(), reference, atol=2e-2, rtol=2e-2)
                else:
                    assert torch.equal(patched, unpatched), dtypes
                    assert patched.dtype == unpatched.dtype, dtypes


@pytest.mark.failure(row=3)
@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("model", [modeling_qwen3, modeling_gpt2], ids=["qwen3", "gpt2"])
def test_eager_attention_takes_other_dtypes_exactly_where_torch_raises(model, autocast):
    toy = inside_a_kbit_model(Eager(model))
    for dtypes in itertools.product(FLOATING, repeat=3):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 2, 4, 8).to(dtype) for dtype in dtypes)
        reference = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
        with torch.autocast(devices.TYPE, torch.bfloat16, enabled=autocast):
            with qlora_bf16_patch.disabled(NAME):
                unpatched = attempt(toy, q, k, v)
            for patched in (attempt(toy, q, k, v) for _ in range(2)):
                if unpatched is None:
                    # GPT-2's own code casts to the value's dtype before its last product.
                    assert patched.dtype == (v if model is modeling_gpt2 else q).dtype, dtypes
                    torch.testing.assert_close(patched.double(), reference, atol=5e-2, rtol=5e-2)
                else:
                    assert torch.equal(patched, unpatched), dtypes
                    assert patched.dtype == unpatched.dtype, dtypes


@pytest.mark.parametrize(
    ("query", "key", "mask"),
    [(torch.float16, torch.float16, torch.bfloat16), (torch.float32, torch.bfloat16, torch.float32)],
)
def test_a_masks_least_number_stays_finite_in_another_dtype_and_its_infinity_infinite(query, key, mask):
    q, k, m = torch.randn(1, 1, 3, 8).to(query), torch.randn(1, 1, 2, 8).to(key), torch.zeros(3, 2).to(mask)
    m[0, 1] = m[1] = torch.finfo(mask).min
    m[2, 1] = -math.inf
    result = inside_a_kbit_model(Attention())(q, k, k, m)
    torch.testing.assert_close(result[..., 0, :], k[..., 0, :].to(query), atol=1e-2, rtol=1e-2)
    assert result.isfinite().all()
    torch.testing.assert_close(result[..., 2, :], k[..., 0, :].to(query), atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("attention", [Attention(), Eager(modeling_qwen3)], ids=["torch's", "eager"])
def test_strict_raises_where_a_cast_would_have_papered_over_a_mismatch(attention):
    q, k, model = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16(), inside_a_kbit_model(attention)
    with pytest.raises(TypeError, match=r"^part \(.*bfloat16.*float32.*peft.boundary"):
        model(q, k, k)
    assert model(q, q, q).dtype == torch.float32


@pytest.mark.usefixtures("strict")
def test_a_mask_is_called_a_mask():
    q, mask = torch.randn(1, 2, 4, 8), torch.zeros(4, 4).half()
    with pytest.raises(TypeError, match=r"given torch.float16 as its attention mask"):
        inside_a_kbit_model(Attention())(q, q, q, mask)


@pytest.mark.parametrize("attention", [Attention(), Eager(modeling_qwen3)], ids=["torch's", "eager"])
def test_compiled_attention_equals_eager_and_a_toggle_is_honoured(attention):
    torch._dynamo.reset()
    q, k, model = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16(), inside_a_kbit_model(attention)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, k), model(q, k, k))
    with qlora_bf16_patch.disabled(NAME), pytest.raises(Exception, match=r"dtype|scalar type"):
        compiled(q, k, k)


def test_a_device_without_autocast_is_left_to_torch():
    q, mask = torch.randn(1, 2, 4, 8, device="meta"), torch.ones(4, 4, dtype=torch.bool, device="meta")
    assert inside_a_kbit_model(Attention())(q, q, q, mask).is_meta
    assert inside_a_kbit_model(Eager(modeling_qwen3))(q, q, q).is_meta


ATTENTION = nn.functional.scaled_dot_product_attention, AttentionInterface.get_interface


def test_torchs_and_transformers_functions_are_left_as_they_are():
    inside_a_kbit_model(Attention())(*[torch.randn(1, 2, 4, 8)] * 3)
    attend, get_interface = ATTENTION
    assert "qlora" not in f"{attend.__module__}{get_interface.__module__}"
    found = ALL_ATTENTION_FUNCTIONS.get_interface("eager", modeling_qwen3.eager_attention_forward)
    assert found is modeling_qwen3.eager_attention_forward


@pytest.mark.parametrize("name", ["torch.attention", "transformers.attention"])
@pytest.mark.parametrize("call", ["enable", "disable", "enabled", "disabled"])
def test_the_names_of_the_patches_that_it_replaces_say_where_they_went(call, name):
    with pytest.raises(qlora_bf16_patch.UnknownPatchError, match=rf"'{name}' is now part of 'peft.boundary'"):
        functools.partial(getattr(qlora_bf16_patch, call), name)().__enter__()


def test_outside_of_a_kbit_model_torch_raises_as_ever():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()
    with pytest.raises(RuntimeError, match="dtype"):
        Attention()(q, k, k)
    assert torch.equal(torch.fx.symbolic_trace(Attention())(q, q, q), Attention()(q, q, q))
