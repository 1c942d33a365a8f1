"""A packed weight that a model's code takes for a matrix: its storage dtype is an integer, and destroys activations."""

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn
from torch._dynamo.variables.torch_function import SymbolicTorchFunctionState

import qlora_bf16_patch
from qlora_bf16_patch.hosts.packed import PackedWeights
from qlora_bf16_patch.numerics.mode import CastOnMismatch
from toys import devices
from toys.models import Model, lora_model

F32, BF16 = torch.float32, torch.bfloat16


class Part(nn.Module):
    """A layer whose weight's dtype the forward reads."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.norm = layer, nn.LayerNorm(64)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def like(self, x):
        return x.to(self.layer.weight.dtype)


class Directly(Part):
    """T5's feed-forward."""

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype))


class InAHelper(Part):
    def forward(self, x):
        return self.layer(self.like(x))


class ByALocalName(Part):
    def forward(self, x):
        dtype = self.layer.weight.dtype
        x = torch.tanh(x) * 2
        return self.layer(x.to(dtype) + torch.ones(64).to(dtype))


class ByAProperty(Part):
    def forward(self, x):
        dtype = self.dtype
        return self.layer(self.norm(x).type(dtype).contiguous())


class ByTheFirstParameter(Part):
    def forward(self, x):
        return self.layer(x.to(dtype=next(self.layer.parameters()).dtype))


class OfItsData(Part):
    def forward(self, x):
        return self.layer(x.to(self.layer.weight.data.dtype))


class AsTheWeight(Part):
    def forward(self, x):
        return self.layer(x.to(self.layer.weight)) + self.layer(x.type_as(self.layer.weight))


class ThroughANorm(Part):
    """open_clip's text tower: what refuses the integers is no k-bit layer."""

    def forward(self, x):
        return self.layer(nn.functional.layer_norm(self.like(x), (64,)))


class ForAMask(Part):
    def forward(self, x):
        dtype = self.layer.weight.dtype
        mask = (torch.arange(64) > 31).to(dtype) * torch.finfo(dtype).min
        return self.layer(x).float() + mask.clamp(min=-3)


class BesideItsOwnIntegers(Part):
    def forward(self, x):
        dtype = self.layer.weight.dtype
        codes = (x.sigmoid() * 255).to(torch.uint8)
        assert codes.dtype == torch.uint8
        return self.layer(x.to(dtype)) + (codes & 1)


COMPILED = [Directly, InAHelper, ByTheFirstParameter, OfItsData, AsTheWeight, BesideItsOwnIntegers]


def linear(bits):
    torch.manual_seed(0)
    with devices.on_cpu():
        return _linear(bits).to(devices.TYPE)


def _linear(bits):
    weight = (torch.randn(64, 64) / 8).to(BF16)
    if bits == 4:
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=BF16, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    return layer


def models(kind, bits):
    """The model, and the same with a matrix where the packed weight of its part is."""
    model = lora_model(toy=Model(kind(linear(bits)))).eval()
    reference = lora_model(toy=Model(kind(nn.Linear(64, 64, bias=False)))).eval()
    layer = model.base_model.model.part.layer
    if bits == 4:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        weight = layer.weight.data * layer.weight.SCB[:, None] / 127
    reference.base_model.model.part.layer.weight.data = weight.to(BF16)
    return model, reference


@pytest.mark.failure(row=21)
@pytest.mark.failure(row=32)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # bitsandbytes' about its own cast
@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", Part.__subclasses__(), ids=lambda kind: kind.__name__)
def test_activations_that_are_cast_to_a_packed_weights_dtype_stay_floating(kind, bits, gradients, autocast):
    model, reference = models(kind, bits)
    x = torch.randn(2, 64, requires_grad=gradients)
    with torch.autocast(devices.TYPE, BF16, enabled=autocast), torch.set_grad_enabled(gradients):
        expected = reference(x)
        with (
            qlora_bf16_patch.disabled("peft.boundary"),
            pytest.raises((TypeError, RuntimeError), match=r"int8|Byte|Char|type"),
        ):
            model(x)
        for _ in range(3):
            result = model(x)
            assert result.is_floating_point()
            torch.testing.assert_close(result.float(), expected.float(), atol=0.1, rtol=0.1)
    if gradients:
        result.float().sum().backward()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", COMPILED, ids=lambda kind: kind.__name__)
def test_compiled_they_stay_floating_as_well(kind, backend):
    torch._dynamo.reset()
    model, reference = models(kind, 4)
    x = torch.randn(2, 64)
    with torch.no_grad():
        result = torch.compile(model, backend=backend, fullgraph=True)(x)
        torch.testing.assert_close(result.float(), reference(x).float(), atol=0.1, rtol=0.1)


class Attributes(Part):
    """It reads what each tensor has."""

    def forward(self, x):
        weight = self.layer.weight
        other = weight.dtype.is_floating_point or weight.device.type != devices.TYPE
        if other or not weight.shape or weight.requires_grad:
            x = x + 1
        return self.layer(x)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_compiled_model_may_read_attributes_of_a_packed_weight(bits):
    torch._dynamo.reset()
    model, x = models(Attributes, bits)[0], torch.randn(2, 64).to(BF16)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


class BehindAGraphBreak(Directly):
    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


class AttributesBehindAGraphBreak(Attributes):
    def forward(self, x):
        x = x * self.layer.weight.dtype.itemsize
        torch._dynamo.graph_break()
        return super().forward(x)


@pytest.mark.parametrize("kind", [BehindAGraphBreak, AttributesBehindAGraphBreak], ids=lambda kind: kind.__name__)
def test_they_are_read_behind_a_graph_break_as_well_and_dynamo_is_left_as_it_was(kind):
    torch._dynamo.reset()
    before = vars(SymbolicTorchFunctionState).copy()
    model, x = models(kind, 4)[0], torch.randn(2, 64)
    with torch.no_grad():
        result = torch.compile(model, backend="eager")(x)
        torch.testing.assert_close(result.float(), model(x).float(), atol=0.1, rtol=0.1)
    assert vars(SymbolicTorchFunctionState) == before


class OwnIntegers(Part):
    def forward(self, x):
        if self.layer.weight.dtype == torch.float32:
            x = x.float()
        return (x.sigmoid() * 255).to(torch.uint8)


class Dequantizing(Part):
    """It asks whether its weight is packed, and knows what to do."""

    def forward(self, x):
        weight = self.layer.weight
        if weight.dtype == torch.uint8:
            weight = dequantize_4bit(weight, weight.quant_state)
        return nn.functional.linear(x, weight)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("kind", [OwnIntegers, Dequantizing])
def test_a_model_that_knows_that_its_weight_is_packed_is_told_the_truth(kind, dtype):
    model, reference = models(kind, 4)
    x = torch.randn(2, 64).to(dtype)
    for _ in range(3):
        with torch.no_grad():
            result = model(x)
            assert result.dtype == (torch.uint8 if kind is OwnIntegers else dtype)
            torch.testing.assert_close(
                result.float(), reference(x.to(BF16)).float(), atol=3 if kind is OwnIntegers else 0.1, rtol=0.1
            )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
def test_a_4_bit_weight_is_dequantized_before_it_is_clamped_and_not_clamped_in_place(dtype):
    with devices.on_cpu():
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_storage=dtype).to(devices.TYPE)
    weight = layer.weight
    expected = dequantize_4bit(weight.data, weight.quant_state).clamp(-0.01, 0.01)
    with CastOnMismatch(special=PackedWeights(lambda *_: True, lambda: False).handlers):
        before = weight.data.clone()
        weight.data.clamp_(-0.01, 0.01)
        assert torch.equal(weight.data.view(torch.uint8), before.view(torch.uint8))
        assert torch.equal(weight.clamp(-0.01, 0.01), expected)
        assert torch.equal(weight.data.clamp(-0.01, 0.01), expected)
        assert torch.equal(torch.tensor([1, 9]).clamp(max=3), torch.tensor([1, 3]))


class Both(nn.Module):
    """One part that casts to its packed weight's dtype, and one that knows that its weight is packed."""

    def __init__(self):
        super().__init__()
        self.knows, self.casts = Scaling(linear(4)), Directly(linear(4))

    def forward(self, x, casts):
        x = self.knows(x)
        return self.casts(x) if casts else x


class Scaling(Part):
    def forward(self, x):
        return x * (2 if self.layer.weight.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_read_of_one_module_is_answered_and_another_ones_is_not(gradients):
    model, x = lora_model(toy=Model(Both())).eval(), torch.randn(2, 64)
    part = model.base_model.model.part
    with torch.set_grad_enabled(gradients):
        expected = [model(x, casts=False), None]
        expected[1] = part.casts.layer(expected[0])
        for casts in (True, False, True, True, False):
            torch.testing.assert_close(model(x, casts=casts).float(), expected[casts].float(), atol=0.1, rtol=0.1)
        assert torch.equal(part.knows(x), 2 * x)


class FailsBehindTheCast(Directly):
    def forward(self, x):
        super().forward(x)
        raise NotImplementedError("no such kernel")


def test_an_error_behind_such_a_cast_comes_through():
    model = models(FailsBehindTheCast, 4)[0]
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="no such kernel"):
            model(torch.randn(2, 64))
