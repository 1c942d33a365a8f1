"""peft.boundary: modules in the style of the code that users write and hubs carry, each a kind of its own."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import qlora_bf16_patch
from toys import devices
from toys.models import Model, lora_model

BF16 = torch.bfloat16
F = nn.functional
MIXED = "[Tt]ype|should be the same|overflow"


class Case(nn.Module):
    """A part of a k-bit model, given float32 hidden states of two sequences of six tokens, 64 wide.

    Attributes:
        rows: of docs/failures.md that it is an example of.
        refused: whether torch refuses it outside of autocast, and under it.
        cast_on_cuda: whether CUDA's autocast casts what the CPU's leaves alone.
        compiles: whether it has one graph.
    """

    rows = ()
    refused = True, False
    cast_on_cuda = False
    compiles = True
    given = torch.float32


class PoolingHead(Case):
    """SigLIP's: a call of torch's, whose inner products no function mode sees."""

    rows = (24,)

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class FusedEncoder(Case):
    rows = (24,)

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x)


class PreparedBatchNorm(Case):
    """prepare_model_for_kbit_training leaves buffers in bfloat16, and casts parameters."""

    rows = (23,)
    refused = True, True
    prepared = True

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.norm.running_mean.add_(0.1)

    def forward(self, x):
        return self.norm(x)


class NormOfItsOwn(Case):
    """open_clip's and DINOv3's: a subclass of torch's with a forward of its own."""

    rows = (33,)
    refused = True, True
    cast_on_cuda = True

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)

    def __init__(self):
        super().__init__()
        self.norm = self.Norm(64)

    def forward(self, x):
        return self.norm(x)


class Bank(nn.Module):
    """It holds what a function elsewhere multiplies by."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / 8)


class ExpertsInAFunction(Case):
    rows = (2,)

    def __init__(self):
        super().__init__()
        self.bank = Bank(4, 64, 8)

    def forward(self, x):
        return by_experts(x, self.bank)


def by_experts(x, bank):
    return torch.einsum("btd,edf->btef", x, bank.weight)


class HeadTiedToAnEmbedding(Case):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 64)

    def forward(self, x):
        return F.linear(x, self.embedding.weight / 8)


class MaskOfFloat32sMinimum(Case):
    rows = (3,)
    refused = True, True
    given = BF16

    def forward(self, x):
        return causal(x @ x.transpose(-1, -2)).softmax(-1)


def causal(scores):
    return scores.masked_fill(torch.ones(6, 6).triu(1).bool(), torch.finfo(torch.float32).min)


class MergedModalities(Case):
    """An image's features are written into the text's embeddings."""

    rows = (25,)
    refused = True, True

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 64)

    def forward(self, x):
        embedded = self.embedding(torch.arange(12).remainder(9).view(2, 6)).clone()
        is_image = torch.tensor([False, True, True, False, False, False]).expand(2, -1)
        embedded[is_image] = x[:, :2].reshape(-1, 64)
        return embedded.masked_scatter(is_image.roll(2, -1)[..., None], x[:, 2:4].reshape(-1, 64))


class PooledByAQuery(Case):
    rows = (26,)

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(64) / 8)

        def forward(self, x):
            return x @ self.query

    def __init__(self):
        super().__init__()
        self.pool = self.Pool()

    def forward(self, x):
        return self.pool(x)


class Activated(Case):
    rows = (33,)

    def __init__(self):
        super().__init__()
        self.activation = nn.PReLU(6)

    def forward(self, x):
        return self.activation(x)


class NormalizedByInstance(Case):
    rows = (33,)
    refused = True, True

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)

    def forward(self, x):
        return self.norm(x)


class Bilinear(Case):
    refused = True, True
    cast_on_cuda = True

    def __init__(self):
        super().__init__()
        self.pair = nn.Bilinear(64, 64, 3)

    def forward(self, x):
        return self.pair(x, x)


class Recurrent(Case):
    rows = (28,)
    compiles = False  # Dynamo breaks the graph at a recurrent layer, unpatched as well
    refused = True, False

    def __init__(self):
        super().__init__()
        self.gru, self.lstm, self.cell = nn.GRU(64, 64, batch_first=True), nn.LSTM(64, 16), nn.GRUCell(16, 8)

    def forward(self, x):
        return self.cell(self.lstm(self.gru(x)[0])[0][:, -1])


class Scattered(Case):
    """Writes of every kind into a stream of the model's own dtype."""

    rows = (31, 33)

    def __init__(self):
        super().__init__()
        self.stream = nn.Parameter(torch.randn(6, 64))

    def forward(self, x):
        index, source = torch.tensor([3, 1]), x[0, :2]
        stream = self.stream.index_copy(0, index, source).index_add(0, index + 1, source)
        stream = stream.scatter_reduce(0, torch.zeros(2, 64, dtype=torch.long), source, "sum")
        return torch.lerp(stream, x[1], 0.25)


class Added(Case):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, x):
        return torch.baddbmm(self.bias, x, x.transpose(1, 2) / 8)


CASES = [
    pytest.param(case, id=case.__name__, marks=[pytest.mark.failure(row=row) for row in case.rows])
    for case in Case.__subclasses__()
]


def prepared(case):
    """The model with the part in bfloat16, and the same part in float32."""
    torch.manual_seed(0)
    part = case()
    if getattr(case, "prepared", False):
        part = part.to(BF16)
        reference = copy.deepcopy(part).float()
        for parameter in part.parameters():
            parameter.data = parameter.data.float()
    else:
        reference = copy.deepcopy(part.to(BF16)).float()
    return lora_model(toy=Model(part)), reference


@contextlib.contextmanager
def settings(training, autocast):
    with torch.autocast(devices.TYPE, BF16, enabled=autocast), torch.set_grad_enabled(training):
        yield


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("autocast", [False, True], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("case", CASES)
def test_what_torch_refuses_is_computed_as_in_float32(case, training, autocast, compiled):
    if compiled and not case.compiles:
        with pytest.raises(torch._dynamo.exc.Unsupported), qlora_bf16_patch.disabled():
            torch.compile(case(), fullgraph=True, backend="eager")(torch.randn(2, 6, 64))
        return
    torch._dynamo.reset()
    model, reference = prepared(case)
    model, reference = model.train(training), reference.train(training)
    x = torch.randn(2, 6, 64, generator=devices.generator(0)).to(case.given)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with settings(training, autocast):
        hidden = model.base_model.model.proj(x)
        with qlora_bf16_patch.disabled("peft.boundary"):
            if case.refused[autocast] and not (autocast and case.cast_on_cuda and devices.TYPE == "cuda"):
                with pytest.raises((RuntimeError, ValueError), match=MIXED):
                    model.train(False)(x)
        model.train(training)
        for _ in range(2):
            result = run(x)
            with torch.autocast(devices.TYPE, enabled=False):
                expected = reference(hidden.float())
            torch.testing.assert_close(result.float(), expected, atol=0.06, rtol=0.03)
    if training:
        result.float().square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert gradients
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
