"""transformers.generate: off by default; on, every operation of generation is as in training."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import qlora_bf16_patch
from toys import devices
from toys.llama import checkpoint, quantized

NAME = "transformers.generate"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' new names
IDS = torch.arange(3, 9, device=devices.TYPE)[None]


def seen(model):
    """Autocast's dtype inside the model's forward, and the logits' of a generated token."""
    dtypes = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.lm_head.register_forward_pre_hook(
        lambda *_: dtypes.append(
            torch.get_autocast_dtype(devices.TYPE) if torch.is_autocast_enabled(devices.TYPE) else None
        )
    )
    scores = model.generate(
        input_ids=IDS, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
    ).logits
    handle.remove()
    return set(dtypes), scores[0]


@pytest.mark.failure(row=4)
@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_off_by_default_and_on_it_is_autocast_for_every_way_to_call_it(bits):
    bare = quantized(bits=bits).eval()
    assert seen(bare)[0] == {None}
    with qlora_bf16_patch.enabled(NAME):
        assert seen(bare)[0] == {torch.bfloat16}
    adapted = get_peft_model(bare, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for model in (adapted, adapted.get_base_model()):
        assert seen(model)[0] == {None}
        with qlora_bf16_patch.enabled(NAME):
            assert seen(model)[0] == {torch.bfloat16}


def test_its_logits_are_those_of_an_autocast_forward():
    model = get_peft_model(
        quantized().eval(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    for name, module in model.named_modules():
        if "norm" in name:
            module.to(torch.float32)
    with torch.no_grad(), torch.autocast(devices.TYPE, torch.bfloat16):
        expected = model(input_ids=IDS).logits[:, -1].float()
    with qlora_bf16_patch.enabled(NAME):
        assert torch.equal(seen(model)[1], expected)
    with qlora_bf16_patch.disabled("peft.boundary"), pytest.raises(RuntimeError, match=r"same dtype|scalar type"):
        seen(model)


def test_autocast_that_is_on_already_is_left_alone():
    model = quantized(dtype=torch.float16).eval()
    with qlora_bf16_patch.enabled(NAME), torch.autocast(devices.TYPE, torch.float16):
        assert seen(model)[0] == {torch.float16}


def test_a_float32_compute_dtype_and_an_unquantized_model_are_left_alone():
    with qlora_bf16_patch.enabled(NAME):
        assert seen(quantized(bnb_4bit_compute_dtype=torch.float32).eval())[0] == {None}
        assert seen(AutoModelForCausalLM.from_pretrained(checkpoint().name, dtype=torch.bfloat16))[0] == {None}


def test_uninstalled_the_very_object_is_back():
    from transformers.generation.utils import GenerationMixin

    with qlora_bf16_patch.enabled(NAME):
        wrapper = vars(GenerationMixin)["generate"]
    qlora_bf16_patch.uninstall()
    try:
        assert vars(GenerationMixin)["generate"] is wrapper.__wrapped__
    finally:
        qlora_bf16_patch.reset()
