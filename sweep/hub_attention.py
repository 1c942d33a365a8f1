"""Modules in the style of hub code: attention, norms, positions and heads of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from toys import devices

WIDTH, HEADS = 64, 4


class Module(nn.Module):
    """One linear layer before what is tried, and one after it; `example` is what forward is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH)

    @staticmethod
    def example() -> dict[str, Any]:
        return {"x": torch.rand(2, 12, WIDTH, generator=devices.generator(0)) - 0.5}


def _split(x: torch.Tensor) -> torch.Tensor:
    return x.view(*x.shape[:-1], HEADS, -1).transpose(1, 2)


class EinsumAttention(Module):
    """Products of activations, some from a 4-bit layer and some from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(HEADS, WIDTH, 16) / 8)

    def forward(self, x: torch.Tensor) -> Any:
        key = self.inner(x)
        query = torch.einsum("btd,hdk->bhtk", x, self.query)
        weights = torch.einsum("bhtk,bhsk->bhts", query, _split(key)).softmax(-1)
        return self.outer(torch.einsum("bhts,bhsk->bthk", weights, _split(x)).flatten(2))


class FloatNorm(Module):
    """Llama's root mean square norm: float32 inside, the weight's dtype after it."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> Any:
            wide = x.float()
            return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6))

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.projection = self.Norm(), nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.norm(self.inner(x)) @ self.projection)


class LayerNormSubclass(Module):
    """open_clip's: a layer norm with a forward of its own."""

    class Norm(nn.LayerNorm):
        def forward(self, input: torch.Tensor) -> Any:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps).to(input.dtype)

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.Norm(WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.norm(self.inner(x)))


class Rotary(Module):
    """Float32 tables, so that query and key are float32 and values are not."""

    def __init__(self) -> None:
        super().__init__()
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        angles = torch.outer(torch.arange(12.0), 100 ** -torch.linspace(0, 1, 8)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        heads = _split(self.inner(x))
        turned = heads * self.cos.float() + torch.cat((-heads[..., 8:], heads[..., :8]), -1) * self.sin.float()
        attended = F.scaled_dot_product_attention(turned, turned, heads, is_causal=True)
        return self.outer(attended.transpose(1, 2).flatten(2))


class Alibi(Module):
    """A bias of the positions in float32, added in place of a mask."""

    def forward(self, x: torch.Tensor) -> Any:
        heads = _split(self.inner(x))
        slopes = 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]
        bias = slopes * (torch.arange(12)[None, None, :] - torch.arange(12)[None, :, None]).float()
        scores = torch.baddbmm(bias.repeat(2, 1, 1), heads.flatten(0, 1), heads.flatten(0, 1).mT, alpha=0.25)
        return self.outer((scores.softmax(-1) @ heads.flatten(0, 1)).view(2, HEADS, 12, -1).transpose(1, 2).flatten(2))


class FusedMask(Module):
    """A float mask for torch's attention, filled with float32's minimum by a helper."""

    def forward(self, x: torch.Tensor) -> Any:
        heads = _split(self.inner(x))
        attended = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=_causal(12))
        return self.outer(attended.transpose(1, 2).flatten(2))


def _causal(length: int) -> torch.Tensor:
    return torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1).bool(), torch.finfo().min)


class FilledScores(Module):
    """Scores filled with float32's minimum, which half precision can't hold."""

    def forward(self, x: torch.Tensor) -> Any:
        heads = _split(self.inner(x))
        scores = heads @ heads.mT / math.sqrt(heads.shape[-1])
        scores = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), torch.finfo(torch.float32).min)
        return self.outer((scores.softmax(-1, dtype=torch.float32) @ heads).transpose(1, 2).flatten(2))


class TorchAttention(Module):
    """SigLIP's pooling head: one call of torch's, whose products no one sees, and a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x)
        return self.outer(self.attention(self.probe.repeat(2, 1, 1), hidden, hidden)[0])


class Resampler(Module):
    """A lone vector that hidden states are multiplied with, in a module without children."""

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: torch.Tensor) -> Any:
            return x @ self.query

    def __init__(self) -> None:
        super().__init__()
        self.pool = self.Pool()

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.pool(self.inner(x)).softmax(-1)[..., None] * x)


class Experts(Module):
    """A bank of weights in a child without a forward, multiplied by a function outside of any module."""

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(HEADS, WIDTH, 32) / 8)
            self.down = nn.Parameter(torch.randn(HEADS, 32, WIDTH) / 8)

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.router = self.Bank(), nn.Parameter(torch.randn(HEADS, WIDTH))

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x)
        shares = F.linear(hidden.float(), self.router.float()).softmax(-1)
        return self.outer(_routed(hidden.flatten(0, 1), self.bank, shares.flatten(0, 1)).view_as(x))


def _routed(x: torch.Tensor, bank: Any, shares: torch.Tensor) -> torch.Tensor:
    result = torch.zeros_like(x)
    for expert in range(HEADS):
        rows = (shares.argmax(-1) == expert).nonzero()[:, 0]
        hidden = F.gelu(x[rows] @ bank.up[expert]) @ bank.down[expert]
        result.index_add_(0, rows, hidden * shares[rows, expert, None])
    return result


class Checkpointed(Module):
    """A checkpoint of its own, as the reentrant one was called before there was a choice."""

    reentrant = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x)
        return self.outer(checkpoint(lambda one: self.norm(one) @ one.mT @ x, hidden, use_reentrant=self.reentrant))


class CheckpointedAnew(Checkpointed):
    """The same without a reentrant backward."""

    reentrant = False


MODULES: list[type[Module]] = [
    *(EinsumAttention, FloatNorm, LayerNormSubclass, Rotary, Alibi, FusedMask, FilledScores, TorchAttention),
    *(Resampler, Experts, Checkpointed, CheckpointedAnew),
]
