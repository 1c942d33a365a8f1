"""What the emulated device must have in common with a real one. Runs on the device, called by ``cases``."""

from __future__ import annotations

import copy

import bitsandbytes as bnb
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..toys import BF16, F32, Recipe, kbit
from . import emulated


def on_device(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return emulated.cuda(torch.randn(shape).to(dtype))


def raised(function) -> str:
    try:
        function()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return ""


def check_a_tensor_is_on_cuda_and_its_results_are():
    x = on_device(2, 3)
    made = [torch.zeros(2, device="cuda"), torch.tensor([1], device="cuda")]
    for tensor in [x, x @ x.T, x.view(3, 2), x.clone(), *made]:
        assert tensor.is_cuda and tensor.device == torch.device("cuda:0")
    assert x.cpu().device.type == "cpu"


def check_values_come_back_as_from_a_gpu():
    x = emulated.cuda(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x[[1, 0]].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert x.sum().item() == 10.0
    assert "can't convert cuda:0" in raised(x.numpy)


def check_autocast_is_cudas_and_not_the_cpus():
    layer, x = emulated.cuda(nn.Linear(4, 4)), on_device(2, 4)
    with torch.autocast("cuda", BF16):
        assert torch.is_autocast_enabled("cuda") and not torch.is_autocast_enabled("cpu")
        assert layer(x).dtype == BF16
        # CUDA's autocast computes these in float32; the CPU's leaves them alone.
        assert nn.functional.layer_norm(x.bfloat16(), (4,)).dtype == F32
        assert x.bfloat16().pow(2).dtype == F32
        assert x.half().softmax(-1).dtype == F32
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == F32
    with torch.autocast("cpu", BF16):
        assert layer(x).dtype == F32


def check_dtypes_that_cuda_refuses_are_refused():
    x = on_device(2, 4, dtype=BF16)
    assert "scalar type" in raised(lambda: emulated.cuda(nn.LayerNorm(4))(x))
    assert "dtype" in raised(lambda: emulated.cuda(nn.Linear(4, 4))(x))


def check_an_operation_in_place_and_one_on_data_are_seen():
    x = on_device(3)
    assert x.add_(1) is x
    x.data = torch.ones(3, dtype=BF16, device="cuda")
    assert (x.dtype, x.tolist()) == (BF16, [1.0, 1.0, 1.0])
    x.data.zero_()
    assert x.tolist() == [0.0, 0.0, 0.0]
    parameter = nn.Parameter(on_device(3))
    parameter.data = parameter.data.to(BF16)
    assert (parameter * 2).cpu_data.dtype == BF16


def check_gradients_are_those_of_the_cpu():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    layer(x).square().sum().backward()
    other = emulated.cuda(copy.deepcopy(layer))
    other.zero_grad()
    other(emulated.cuda(x)).square().sum().backward()
    assert torch.equal(other.weight.grad.cpu_data, layer.weight.grad)


def check_gradient_checkpointing_draws_the_same_random_numbers_again():
    for reentrant in (False, True):
        x, drawn = on_device(64).requires_grad_(), []

        def block(x, drawn=drawn):
            drawn.append(nn.functional.dropout(x, 0.5))
            return drawn[-1].square()

        torch.manual_seed(0)
        out = checkpoint(block, x, use_reentrant=reentrant).sum()
        torch.rand(3)
        out.backward()
        assert len(drawn) == 2 and drawn[0].tolist() == drawn[1].tolist()


def check_quantized_parameters_keep_their_class_through_a_copy():
    for bits, expected in ((4, bnb.nn.Params4bit), (8, bnb.nn.Int8Params)):
        for layer in (emulated.cuda(kbit(bits)), copy.deepcopy(emulated.cuda(kbit(bits)))):
            assert layer.weight.is_cuda and isinstance(layer.weight, (expected, nn.Parameter))
            assert layer.weight.__class__ is expected
            scales = layer.weight.quant_state.absmax if bits == 4 else layer.weight.SCB
            assert scales.is_cuda


def check_quantized_layers_compute_what_the_cpus_do():
    for bits in (4, 8):
        layer, x = kbit(bits).eval(), torch.randn(2, 3, 64).to(BF16)
        with torch.no_grad():
            expected, got = copy.deepcopy(layer)(x), emulated.cuda(layer)(emulated.cuda(x))
        assert torch.equal(got.cpu_data, expected)


def check_an_8_bit_layer_trains_on_integers_as_on_a_gpu_and_not_as_on_a_cpu():
    layer, x = emulated.cuda(kbit(8)).train(), on_device(2, 64, dtype=BF16)
    with torch.no_grad():
        assert torch.equal(layer(x).cpu_data, layer.eval()(x).cpu_data)


def check_an_adapted_model_is_on_the_device_as_a_whole():
    for variant in ("plain", "DoRA"):
        for bits in (4, 8):
            model = copy.deepcopy(emulated.cuda(Recipe(bits=bits, variant=variant).build()))
            assert all(parameter.is_cuda for parameter in model.parameters())
            assert all(buffer.is_cuda for buffer in model.buffers())
