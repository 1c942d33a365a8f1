"""What older releases of transformers refuse in their models' own code: `make matrix-check` asks 4.51 and 4.57."""

import copy

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from packaging.version import Version
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig

import qlora_bf16_patch

# PEFT reads a model's flag by the name that transformers gives up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
RELEASE = Version(transformers.__version__)
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}


def prepared(folder, config):
    """A toy in 4 bits, with eager attention, as ``prepare_model_for_kbit_training`` leaves it: the rest in float32."""
    torch.manual_seed(0)
    cls = transformers.AutoModelForCausalLM
    cls.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = cls.from_pretrained(
        folder,
        quantization_config=quantization,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        attn_implementation="eager",
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):  # the toys' widths are none that bitsandbytes can repack
            module.support_avx512bf16_for_cpu = False
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False))


def generated(model):
    ids = torch.arange(3, 9)[None]
    return model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)


def trained(model):
    ids = torch.arange(3, 9)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3"])
def test_eager_gemma_generates_where_its_cache_keeps_the_models_dtype(family, tmp_path):
    config = getattr(transformers, {"Gemma2": "Gemma2Config", "Gemma3": "Gemma3TextConfig"}[family])
    model = prepared(tmp_path, config(**SIZES, sliding_window=8))
    if RELEASE < Version("4.56"):  # HybridCache casts the keys to bfloat16, and the queries are float32
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
            generated(copy.deepcopy(model))
    assert generated(model).shape == (1, 10)


def test_deepseek_adds_up_its_experts_under_autocast(tmp_path):
    model = prepared(tmp_path, transformers.DeepseekV3Config(**SIZES | EXPERTS))
    if RELEASE < Version("5"):  # index_add_ is none of the operations that autocast covers
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="index_add_"):
            trained(copy.deepcopy(model))
    assert trained(model).isfinite()
