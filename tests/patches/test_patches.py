"""The patches on real bitsandbytes and PEFT, on CPU; each defect is shown unpatched first."""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import qlora_bf16_patch

REPORT = Path(__file__).parents[2] / "examples" / "generate_in_callback.py"
HALVES = [torch.bfloat16, torch.float16]


class Toy(nn.Module):
    is_loaded_in_4bit = True  # what makes PEFT choose its Linear4bit

    def __init__(self, bias=True):
        super().__init__()
        self.proj = bnb.nn.Linear4bit(64, 64, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
        self.head = nn.Linear(64, 8, bias=False, dtype=torch.bfloat16)

    def forward(self, x):
        return self.head(self.proj(x))


def lora(**options):
    torch.manual_seed(0)
    return get_peft_model(Toy(), LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False, **options)).eval()


@pytest.mark.parametrize(("arguments", "status"), [((), 1), (("--shim",), 0)], ids=["unpatched", "patched"])
def test_the_reported_script_generates_only_with_the_shim(arguments, status):
    run = subprocess.run([sys.executable, str(REPORT), "bf16", *arguments], capture_output=True, text=True, timeout=300)
    assert run.returncode == status, run.stdout + run.stderr
    assert ("expected m" in run.stdout) == (status == 1)


def test_the_head_takes_another_dtype_and_a_toggle_is_honoured():
    model, x = lora(), torch.randn(2, 64)
    assert model(x).dtype == torch.float32
    with qlora_bf16_patch.disabled("peft.boundary"), pytest.raises(RuntimeError, match="same dtype"):
        model(x)
    assert model(x).shape == (2, 8)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_forward_never_writes_to_the_bias(dtype):
    def changed():
        layer = bnb.nn.Linear4bit(64, 64, compute_dtype=dtype).to("cpu")
        before = layer.bias.detach().clone()
        layer(torch.randn(2, 64))
        return layer.bias.dtype != before.dtype or not torch.equal(layer.bias, before)

    with qlora_bf16_patch.disabled("bitsandbytes.linear4bit"):
        assert changed()
    assert not changed()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("dora", [False, True])
def test_a_lora_layer_computes_as_under_autocast_and_gives_the_dtype_back(dtype, dora):
    layer = lora(use_dora=dora).base_model.model.proj
    x = torch.randn(2, 64).to(dtype)
    result = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
    assert result.dtype == expected.dtype == dtype
    assert torch.equal(result, expected)
    with qlora_bf16_patch.disabled("peft.lora.linear4bit"):
        assert not torch.equal(layer(x), expected)


def test_integer_activations_are_a_clear_error():
    with pytest.raises(TypeError, match="storage dtype"):
        Toy().proj(torch.ones(2, 64, dtype=torch.uint8))


def test_guard_mends_a_model_without_peft():
    model, x = Toy(), torch.randn(2, 64)
    with pytest.raises(RuntimeError, match="same dtype"):
        model(x)
    assert qlora_bf16_patch.guard(model)(x).dtype == torch.float32


@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float32, *HALVES], repeat=3)), ids=str)
def test_attention_takes_other_dtypes_exactly_where_torch_raises(dtypes):
    torch.manual_seed(0)
    q, k, m = (torch.randn(1, 2, 4, n).to(dtype) for dtype, n in zip(dtypes, (8, 8, 4), strict=True))
    call = functools.partial(nn.functional.scaled_dot_product_attention, attn_mask=m)
    with qlora_bf16_patch.disabled("torch.attention"):
        reference = call(q.double(), k.double(), k.double(), attn_mask=m.double())
        try:
            unpatched = nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=m)
        except RuntimeError as error:
            assert "dtype" in str(error)
            unpatched = None
    patched = nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=m)
    assert patched.dtype == q.dtype
    torch.testing.assert_close(patched.double(), reference, atol=2e-2, rtol=2e-2)
    if unpatched is not None:
        assert torch.equal(patched, unpatched)


def test_compiled_attention_equals_eager_and_a_toggle_is_honoured():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16()

    def attend(q, k):
        return nn.functional.scaled_dot_product_attention(q, k, k)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k), attend(q, k))
    with qlora_bf16_patch.disabled("torch.attention"), pytest.raises(Exception, match="dtype"):
        compiled(q, k)
