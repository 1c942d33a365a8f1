"""What comes into a k-bit model after PEFT has built it, and what stands around one."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.patches.torch_layers import Weighted
from toys import devices
from toys.llama import TOY, generate, llama, quantized

F32, BF16 = torch.float32, torch.bfloat16
IDS = torch.arange(3, 15, device=devices.TYPE)[None]
REFUSED = "same dtype"

# Third parties about each other: checkpointing under a new name, generation's defaults, a resized vocabulary.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def bare():
    """A quantized Llama without PEFT, its norms in float32."""
    model = quantized()
    for name, module in model.named_modules():
        if "norm" in name:
            module.float()
    return model.eval()


def resized(model):
    model.resize_token_embeddings(333)


def another_head(model):
    model.get_base_model().set_output_embeddings(nn.Linear(64, 320, bias=False, dtype=BF16))


def another_head_by_name(model):
    model.get_base_model().lm_head = nn.Sequential(nn.Linear(64, 64, dtype=BF16), nn.Linear(64, 320, dtype=BF16))


class Projected(nn.Module):
    """A norm of the model's with a projector behind it."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.projector = norm, nn.Parameter(torch.eye(64, dtype=BF16))

    def forward(self, hidden_states):
        return hidden_states + self.norm(hidden_states) @ self.projector


def a_projector(model):
    inner = model.get_base_model().model
    inner.norm = Projected(inner.norm)


@pytest.mark.failure(row=29)
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("change", [resized, another_head, another_head_by_name, a_projector])
def test_what_is_put_in_later_is_mended_without_a_call(change, called_before):
    model = llama(TOY, "qlora").eval()
    with torch.no_grad():
        if called_before:
            generate(model, IDS, 3)
            model(IDS)
        change(model)
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match=REFUSED):
            model(IDS)
        for _ in range(2):
            assert generate(model, IDS, 3).shape == (1, 15)
            assert model(IDS).logits.isfinite().all()
    model.train()(IDS, labels=IDS).loss.backward()


def test_a_layer_that_was_put_in_later_is_cast_at_its_boundary_from_then_on_and_not_operation_by_operation():
    model = llama(TOY, "qlora").eval()
    another_head(model)
    with torch.no_grad():
        model(IDS)
    assert type(vars(model.get_base_model().lm_head)["forward"]) is Weighted


METHODS = {
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
}


@pytest.mark.failure(row=30)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_prompt_learning_is_taken_in_when_peft_builds_it(method):
    model = get_peft_model(bare(), METHODS[method]())
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match=REFUSED):
        model(IDS)
    with torch.no_grad():
        assert model.eval()(IDS).logits.isfinite().all()
        for _ in range(2):
            assert generate(model, IDS, 3).shape == (1, 15)
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_one_of_prompt_learning_can_be_switched_off_and_undone():
    model = get_peft_model(bare(), METHODS["prompt"]())
    for off in (qlora_bf16_patch.disabled("peft.boundary"), qlora_bf16_patch.disabled()):
        with off, pytest.raises(RuntimeError, match=REFUSED):
            model(IDS)
    try:
        qlora_bf16_patch.uninstall()
        assert not any("forward" in vars(module) for module in model.modules())
    finally:
        qlora_bf16_patch.reset()
    assert model(IDS).logits.isfinite().all()


def test_a_bare_model_without_peft_is_mended_by_guard():
    model = bare()
    with torch.no_grad():
        with pytest.raises(RuntimeError, match=REFUSED):
            model(IDS)
        assert generate(qlora_bf16_patch.guard(model), IDS, 3).shape == (1, 15)


class Outer(nn.Module):
    """A user's own module around a PEFT backbone, as a forecaster or a policy has it."""

    def __init__(self, head):
        super().__init__()
        self.backbone = llama(TOY, "plain")
        self.head = head

    def forward(self, ids):
        hidden = self.backbone(ids, output_hidden_states=True).hidden_states[-1]
        result = self.head(hidden)
        return result[0] if isinstance(result, tuple) else result


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, hidden):
        return self.attention(hidden, hidden, hidden)


HEADS = {
    "linear": lambda: nn.Linear(64, 3),
    "MLP": lambda: nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)),
    "GRU": lambda: nn.GRU(64, 8, batch_first=True),
    "LSTM": lambda: nn.LSTM(64, 8, batch_first=True),
    "attention": Attending,
    "encoder layer": lambda: nn.TransformerEncoderLayer(64, 4, 64, batch_first=True),
}


@pytest.mark.failure(row=27)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_in_float32_around_a_backbone_in_half_precision_is_mended_by_guard(kind):
    outer = Outer(HEADS[kind]())
    with pytest.raises((RuntimeError, ValueError), match="type"):
        outer(IDS)
    assert qlora_bf16_patch.guard(outer) is outer
    for training in (True, False):
        outer.train(training)
        with torch.set_grad_enabled(training):
            for _ in range(2):
                result = outer(IDS)
                assert result.isfinite().all()
    outer.train()(IDS).float().sum().backward()
    assert all(parameter.grad is not None for parameter in outer.head.parameters())
