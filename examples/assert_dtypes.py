"""A QLoRA model's dtypes in a pytest suite: ``pytest examples/assert_dtypes.py``. One test fails. No download."""

import qlora_bf16_patch  # isort: skip  # at the top, as in any script

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' about itself


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.bfloat16)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def test_dtypes(model):
    qlora_bf16_patch.assert_dtypes(
        model, {"*proj": "nf4", "*norm": torch.float32}, compute=torch.bfloat16, adapters=torch.float32
    )


def test_generation_needs_no_cast(model):
    model.get_output_embeddings().to(torch.bfloat16)  # as the QLoRA script does
    ids = torch.arange(3, 9, device=model.device)[None]
    with qlora_bf16_patch.assert_dtypes(model):
        model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
