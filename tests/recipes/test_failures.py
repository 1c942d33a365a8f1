"""The failures that users report, a test a row: each shows the defect unpatched, then mended.

``ROWS`` is the table of docs/failures.md. Where no forward can mend a row it stands in ``OUT_OF_REACH`` with what the
user is told instead.
"""

import contextlib
import copy
import re
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import PeftType
from torch import nn

import qlora_bf16_patch

from .. import devices
from ..patches.conftest import autocast, linear4bit, lora_layer, lora_model
from ..patches.test_boundary import Model
from ..patches.test_tuners import adapted
from .sweep import recipes, runs

# Row: the upstream reports.
ROWS = {
    1: "huggingface/peft#1515 huggingface/trl#1202 huggingface/trl#1203 huggingface/trl#1398 artidoro/qlora#287",
    2: "huggingface/peft#1515",
    3: "hiyouga/LlamaFactory#539 huggingface/transformers#29974",
    4: "Dao-AILab/flash-attention#398 axolotl-ai-cloud/axolotl#336 unslothai/unsloth#1013",
    5: "bitsandbytes-foundation/bitsandbytes#1623 bitsandbytes-foundation/bitsandbytes#1662",
    6: "bitsandbytes-foundation/bitsandbytes#2077",
    7: "measured: bitsandbytes 0.46.1 to 0.50.2",
    8: "unslothai/unsloth#6526",
    9: "measured: peft 0.21.2",
    10: "measured: peft 0.21.2",
    11: "huggingface/peft#1172 deepspeedai/DeepSpeed#4885",
    12: "read: peft 0.21.2",
    13: "huggingface/peft#101 huggingface/peft#84 huggingface/peft#121 huggingface/peft#874",
    14: "hiyouga/LlamaFactory#3807 unslothai/unsloth#5313 OpenGVLab/InternVL#602",
    15: "read: peft 0.21.2",
    16: "read: accelerate 1.15.0",
    17: "told in articles",
    21: "measured: transformers 5.23.0",
    22: "measured: transformers 5.23.0",
}
OUT_OF_REACH = {
    18: "FSDP flattens parameters before any forward runs: set bnb_4bit_quant_storage to the adapters' dtype. "
    "axolotl-ai-cloud/axolotl#1482 huggingface/trl#1723 huggingface/trl#6343 huggingface/peft#1550",
    19: "a GradScaler refuses half precision gradients after the forward: train adapters in float32, as PEFT does. "
    "huggingface/peft#341 huggingface/peft#1249 huggingface/trl#4901",
    20: "an overflow, not a mismatch: the patches never cast to float16 on their own. "
    "dvlab-research/LongLoRA#165 Lightning-AI/litgpt#693",
}
MISMATCH = r"dtype|scalar type|should be the same"


def test_every_row_has_a_test_or_a_reason():
    tested = {int(found[1]) for name in globals() if (found := re.match(r"test_row_(\d+)_", name))}
    assert tested == set(ROWS)
    assert sorted([*tested, *OUT_OF_REACH]) == list(range(1, 23))
    page = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
    for row in range(1, 23):
        assert re.search(rf"^\| {row} \|", page, re.MULTILINE), row


@contextlib.contextmanager
def unpatched(error=RuntimeError, match=MISMATCH):
    """The block raises what the user sees."""
    with qlora_bf16_patch.disabled(), pytest.raises(error, match=match):
        yield


def toy(name, recipe):
    return recipes.prepared(runs.TOYS[name], runs.checkpoint(name), recipe)


@pytest.fixture(autouse=True)
def quiet():
    verbosity = runs.transformers.logging.get_verbosity()
    runs.transformers.logging.set_verbosity_error()
    yield
    runs.transformers.logging.set_verbosity(verbosity)


def generates(name, recipe):
    with torch.no_grad():
        return runs.generate(runs.TOYS[name], copy.deepcopy(toy(name, recipe)), autocast=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["qlora", "trl"])
def test_row_1_generate_outside_autocast(recipe):
    with unpatched():
        generates("LlamaForCausalLM", recipe)
    assert generates("LlamaForCausalLM", recipe).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_row_2_routers_and_experts():
    with unpatched():
        generates("MixtralForCausalLM", "norms32")
    assert generates("MixtralForCausalLM", "norms32").isfinite().all()


def test_row_3_attention_mask_and_query():
    q, k, mask = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8).bfloat16(), torch.zeros(4, 4).half()
    attend = lora_model(toy=Model(Attention()))
    for arguments in ((q, k, k), (q, q, q, mask)):
        with unpatched(match="Expected"):
            attend(*arguments)
        assert attend(*arguments).dtype == torch.float32


class Attention(nn.Module):
    def forward(self, q, k, v, mask=None):
        return nn.functional.scaled_dot_product_attention(q, k, v, mask)


def flash_attention(q):
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    return q


def test_row_4_flash_attention_in_training_and_in_generation():
    layer, x = lora_layer(), torch.randn(2, 64)
    with autocast(torch.bfloat16):
        with unpatched(match="FlashAttention"):
            flash_attention(layer(x))
        with qlora_bf16_patch.enabled("*.autocast_output"):
            assert flash_attention(layer(x)).dtype == torch.bfloat16


def test_row_5_the_first_input_overrules_the_compute_dtype():
    layer, x = linear4bit(torch.bfloat16), torch.randn(2, 64)
    layer.compute_type_is_set = False  # as in bitsandbytes up to 0.46.1, whatever was configured
    with qlora_bf16_patch.disabled():
        overruled = copy.deepcopy(layer)
        overruled(x)
        assert overruled.compute_dtype == torch.float32
    layer(x)
    assert layer.compute_dtype == torch.bfloat16


def test_row_6_float32_is_the_default_compute_dtype(monkeypatch, caplog):
    installation = qlora_bf16_patch._registry.installation("bitsandbytes.linear4bit")
    monkeypatch.setattr(installation, "notes", {})
    linear4bit(torch.float32)(torch.randn(2, 64).bfloat16())
    assert "bnb_4bit_compute_dtype" in caplog.text
    assert any("bnb_4bit_compute_dtype" in note for row in qlora_bf16_patch.status() for note in row.notes)


def test_row_7_a_bias_loses_bits():
    x = torch.randn(2, 64)
    for patched, kept in ((False, False), (True, True)):
        layer = linear4bit()
        before = layer.bias.detach().clone()
        with contextlib.nullcontext() if patched else qlora_bf16_patch.disabled():
            layer(x)
        assert (layer.bias.dtype == before.dtype and torch.equal(layer.bias, before)) == kept


@pytest.fixture
def cuda_autocast():
    """What ``torch.is_autocast_enabled()`` without a device looks at; no GPU is needed to set it."""
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("cuda_autocast")
@pytest.mark.cpu("on a GPU see the next one")
@torch.no_grad()
def test_row_8_dora_promotes_a_bfloat16_stream_under_cuda_autocast():
    # Here a layer on the CPU, outside of its own autocast; in training, and under autocast, upstream's result stands
    # unless peft.lora.autocast_output is on.
    layer, x = lora_layer(torch.float32, use_dora=True), torch.randn(2, 64).bfloat16()
    layer.lora_A.to(torch.bfloat16)
    layer.lora_B.to(torch.bfloat16)  # what autocast would do on the GPU; the magnitude stays float32
    with qlora_bf16_patch.disabled():
        assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16


@pytest.mark.skipif(devices.TYPE == "cpu", reason="CUDA's autocast needs a GPU, or an emulated one (make cuda)")
def test_row_8_dora_follows_cudas_autocast_with_the_option():
    layer, x = lora_layer(torch.float32, use_dora=True), torch.randn(2, 64).bfloat16()
    with autocast(torch.bfloat16):
        assert layer(x).dtype == torch.float32  # a training that runs stays as it is
        with qlora_bf16_patch.enabled("peft.lora.autocast_output"):
            assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's, of SHiRA
@pytest.mark.parametrize(
    ("method", "bits"),
    [(PeftType.HIRA, 4), (PeftType.PVERA, 4), (PeftType.SHIRA, 8), (PeftType.VERA, 8), (PeftType.ADALORA, 8)],
)
def test_row_9_other_methods_mismatch(method, bits):
    dtype = torch.float32 if method in (PeftType.PVERA, PeftType.SHIRA) else torch.bfloat16
    model, x = adapted(method, bits, dtype), torch.randn(2, 64)
    x = x.bfloat16() if method == PeftType.SHIRA else x
    with unpatched():
        model(x)
    assert model(x).dtype == x.dtype


@pytest.mark.parametrize(("method", "bits"), [(PeftType.IA3, 4), (PeftType.ROAD, 4), (PeftType.RANDLORA, 8)])
@torch.no_grad()
def test_row_10_other_methods_leak_another_dtype(method, bits):
    model, x = adapted(method, bits), torch.randn(2, 64).bfloat16()
    # On a GPU RandLora mismatches: PEFT casts its matrices to float32 on a CPU alone.
    mismatches = method == PeftType.RANDLORA and devices.TYPE == "cuda"
    with unpatched() if mismatches else qlora_bf16_patch.disabled():
        assert model(x).dtype == torch.float32
    assert model(x).dtype == torch.bfloat16
    with autocast(torch.bfloat16), qlora_bf16_patch.enabled("peft.tuners.autocast_output", "peft.lora.autocast_output"):
        assert model(x).dtype == torch.bfloat16


def test_row_11_the_matrices_of_an_adapter_differ_in_dtype():
    layer, x = lora_layer(), torch.randn(2, 64)
    layer.lora_B.to(torch.bfloat16)
    with unpatched():
        layer(x)
    assert layer(x).dtype == torch.float32


@torch.no_grad()
def test_row_12_the_second_adapter_sees_a_rounded_input():
    from ..patches.test_lora import two_adapters

    x = torch.randn(4, 64)
    both = two_adapters(torch.bfloat16, torch.float32, torch.float32)
    alone = copy.deepcopy(both)
    alone.set_adapter("other")
    both.lora_B["default"].weight.data.zero_()  # so nothing is left of the first but its cast of the input
    assert torch.equal(both(x), alone(x))
    with qlora_bf16_patch.disabled():
        assert not torch.equal(both(x), alone(x))


def test_row_13_lora_on_8_bits_keeps_the_streams_dtype():
    # PEFT before 0.2.0 raised "expected scalar type Half but found Float" here; today autocast's dtype leaks out.
    model, x = adapted(PeftType.LORA, 8).train(), torch.randn(2, 64)
    with autocast(torch.bfloat16):
        # A training that runs stays as it is; on a GPU it multiplies integers, and gives the input's dtype back.
        assert model(x).dtype == (torch.bfloat16 if devices.TYPE == "cpu" else torch.float32)
    model.eval()
    with torch.no_grad():
        assert model(x).dtype == torch.float32


@pytest.mark.parametrize("part", [nn.Conv2d(3, 8, 2), nn.LayerNorm(4), nn.Linear(4, 8)], ids=lambda p: type(p).__name__)
def test_row_14_patch_embeddings_norms_and_projectors(part):
    model, pixels = lora_model(toy=Model(part.bfloat16())), torch.randn(2, 3, 4, 4)
    with unpatched():
        model(pixels)
    assert model(pixels).dtype == torch.float32


@pytest.mark.usefixtures("cuda_autocast")
def test_row_15_a_layer_on_the_cpu_inside_cuda_autocast():
    layer, x = lora_layer(torch.bfloat16).to("cpu"), torch.randn(2, 64, device="cpu")
    with unpatched():
        layer(x)
    assert layer(x).dtype == torch.float32


def test_row_16_a_model_that_accelerate_dispatched_before_the_import():
    layer = linear4bit()
    wrapper = type(layer).forward
    type(layer).forward = wrapper.__wrapped__
    try:
        add_hook_to_module(layer, ModelHook())
    finally:
        type(layer).forward = wrapper
    copy.deepcopy(layer)(torch.randn(2, 64))
    assert vars(layer)["_old_forward"].__func__ is wrapper.__wrapped__  # the fix does nothing
    qlora_bf16_patch.guard(nn.Sequential(layer))
    assert vars(layer)["_old_forward"].__func__ is wrapper


def test_row_17_token_ids_cast_to_bfloat16():
    model = lora_model(toy=Model(nn.Embedding(300, 64)))
    with pytest.raises(TypeError, match=r"bfloat16 token ids.*Leave input_ids integers"):
        model(torch.tensor([[257]]).bfloat16())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["LongT5ForConditionalGeneration", "SwitchTransformersForConditionalGeneration"])
def test_row_21_activations_truncated_to_the_storage_dtype(name):
    model = toy(name, "plain")
    with torch.no_grad():
        reference = runs.generate(runs.TOYS[name], recipes.dequantized(copy.deepcopy(model)), autocast=True).float()
        patched = runs.generate(runs.TOYS[name], copy.deepcopy(model), autocast=False).float()
        with qlora_bf16_patch.disabled():
            truncated = runs.generate(runs.TOYS[name], copy.deepcopy(model), autocast=False).float()
    scale = reference.abs().max()
    assert (patched - reference).abs().median() < 0.03 * scale
    assert (truncated - reference).abs().median() > 0.1 * scale
    runs.train(runs.TOYS[name], copy.deepcopy(model), autocast=False)
    if name.startswith("LongT5"):
        with unpatched(match="Byte"):
            runs.train(runs.TOYS[name], copy.deepcopy(model), autocast=False)


@pytest.mark.cpu("CUDA's autocast covers the norm")
def test_row_22_a_layer_norm_under_autocast_on_the_cpu():
    model, x = lora_model(toy=Model(nn.LayerNorm(64).bfloat16())), torch.randn(2, 64)
    with autocast(torch.bfloat16):
        with unpatched(match="mixed dtype"):
            model(x)
        assert model(x).dtype == torch.float32
