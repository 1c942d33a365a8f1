"""What an emulated device must have in common with a real one, where the other tests rely on it. Runs on either."""

import copy
import io

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from toys import devices
from toys.layers import BF16, F16, F32, kbit
from toys.methods import Recipe

pytestmark = pytest.mark.skipif(devices.TYPE != "cuda", reason="of CUDA, real or emulated: make cuda")


def test_a_tensor_is_on_cuda_and_its_results_are():
    x = torch.randn(2, 3)
    for tensor in [
        x,
        x @ x.T,
        x.view(3, 2),
        x.clone(),
        torch.tensor([1]),
        nn.Linear(2, 2).cuda().weight,
        x.new_ones(2),
    ]:
        assert tensor.is_cuda and tensor.device == torch.device("cuda:0")
    assert x.cpu().device.type == x.to("cpu").device.type == "cpu"
    assert type(nn.Linear(2, 2).cuda().weight) is nn.Parameter
    assert torch.cuda.is_available() and torch.cuda.device_count() >= 1


def test_values_come_back():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert x.is_cuda
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x[[1, 0]].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert x.sum().item() == 10.0
    assert x.cpu().numpy().sum() == 10.0
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()


def test_autocast_is_cudas_and_not_the_cpus():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
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


def test_what_cuda_refuses_is_refused():
    x = torch.randn(2, 4).to(BF16)
    for module, given, match in [
        (nn.LayerNorm(4), x, "scalar type"),
        (nn.GroupNorm(1, 2), x[None], "scalar type"),
        (nn.Linear(4, 4), x, "dtype"),
        (nn.Conv1d(2, 2, 1), x[None], "should be the same"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            module(given)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.randn(2, 4, device="cpu")
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([x, x.cpu()])
    assert (x + torch.tensor(1.0, device="cpu")).is_cuda  # a number may come from the CPU


def test_a_tensor_shares_memory_with_its_views_and_is_written_to_in_place():
    x = torch.zeros(4)
    x.view(2, 2)[1].fill_(3)
    x[0] = 5
    assert x.add_(1) is x
    assert x.tolist() == [6.0, 1.0, 4.0, 4.0]
    assert torch.add(x, 1, out=torch.empty(0)).tolist() == [7.0, 2.0, 5.0, 5.0]
    parameter = nn.Parameter(x)
    parameter.data = parameter.data.to(BF16)
    parameter.data.zero_()
    assert (parameter.dtype, parameter.tolist()) == (BF16, [0.0] * 4)


def test_tensors_are_copied_saved_and_loaded():
    layer, buffer = nn.Linear(3, 3), io.BytesIO()
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer)["weight"]
    assert loaded.is_cuda and torch.equal(loaded, layer.weight)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_layers_without_a_kernel_in_common_with_the_cpu_run_and_train(dtype):
    x = torch.randn(2, 4, 8).to(dtype)
    for module in (nn.Conv1d(4, 4, 3, groups=4), nn.LSTM(8, 8), nn.GRU(8, 8), nn.MultiheadAttention(8, 2)):
        module = module.to(dtype)
        out = module(x, x, x)[0] if isinstance(module, nn.MultiheadAttention) else module(x)
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_what_the_cpus_do(cell):
    layer, x = cell(8, 8), torch.randn(2, 4, 8)
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        result = layer(x)[0]
    torch.testing.assert_close(result.cpu(), copy.deepcopy(layer).cpu()(x.cpu())[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_random_numbers_again(reentrant):
    x, drawn = torch.randn(64).requires_grad_(), []

    def block(x):
        drawn.append(nn.functional.dropout(x, 0.5))
        return drawn[-1].square()

    torch.manual_seed(0)
    out = checkpoint(block, x, use_reentrant=reentrant).sum()
    torch.rand(3)
    out.backward()
    assert len(drawn) == 2 and drawn[0].tolist() == drawn[1].tolist()


def test_the_random_state_is_kept_and_set():
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_what_a_backward_runs_again_runs_in_a_thread_of_the_devices():
    import threading

    threads = []

    def block(x):
        threads.append(threading.get_ident())
        return x.square()

    checkpoint(block, torch.randn(2).requires_grad_(), use_reentrant=True).sum().backward()
    assert len(set(threads)) == 2  # function modes are a thread's own


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_keep_their_classes_and_scales_through_a_copy(bits):
    for layer in (kbit(bits), copy.deepcopy(kbit(bits)), kbit(bits).to("cuda")):
        assert layer.weight.is_cuda
        assert type(layer.weight) is (bnb.nn.Params4bit if bits == 4 else bnb.nn.Int8Params)
        scales = layer.weight.quant_state.absmax if bits == 4 else layer.weight.SCB
        assert scales.is_cuda


def test_an_8_bit_layer_trains_on_integers_and_not_as_on_a_cpu():
    layer, x = kbit(8).train(), torch.randn(2, 64).to(BF16)
    with torch.no_grad():
        assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("variant", ["plain", "DoRA"])
def test_an_adapted_model_is_on_the_device_as_a_whole(bits, variant):
    model = copy.deepcopy(Recipe(bits=bits, variant=variant).build())
    assert all(tensor.is_cuda for tensor in [*model.parameters(), *model.buffers()])
