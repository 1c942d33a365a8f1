"""Modules in the style of hub code: merged streams, casts to a weight's dtype, caches, forms of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from toys import devices

from .hub_attention import WIDTH, Module


class Merged(Module):
    """An image's features written into the text's embeddings by a mask as index."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        embedded = self.embedding(torch.arange(12).repeat(2, 1)).clone()
        return self.outer(self.merged(embedded, torch.arange(12).repeat(2, 1) < 4, self.inner(x)[:, :4]))

    def merged(self, embedded: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> Any:
        embedded[places] = features.reshape(-1, WIDTH)
        return embedded


class Scattered(Merged):
    """The same by ``masked_scatter``."""

    def merged(self, embedded: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> Any:
        return embedded.masked_scatter(places[..., None].expand_as(embedded), features)


class Copied(Merged):
    """The same by ``index_copy``."""

    def merged(self, embedded: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> Any:
        return embedded.index_copy(1, torch.arange(4), features)


class Joined(Merged):
    """The same by ``torch.where`` and a concatenation."""

    def merged(self, embedded: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> Any:
        wide = torch.cat(tensors=(features, embedded[:, 4:]), dim=1)
        return torch.where(places[..., None], wide, embedded)


class CastInHelper(Module):
    """T5's cast to the weight's dtype, in a method that forward calls."""

    def activated(self, hidden: torch.Tensor) -> Any:
        return F.gelu(hidden).to(self.outer.weight.dtype)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.activated(self.inner(x)))


class CastByProperty(Module):
    """The same by a property, as PreTrainedModel's ``dtype`` is one."""

    @property
    def weight_dtype(self) -> torch.dtype:
        return self.outer.weight.dtype

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.inner(x).to(self.weight_dtype))


class CastByParameters(Module):
    """The same by ``next(parameters())``, as diffusers and open_clip do."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.inner(x.to(next(self.inner.parameters()).dtype)))


class CastByName(Module):
    """The same by a local name for the layer, and by ``type_as``."""

    def forward(self, x: torch.Tensor) -> Any:
        layer = self.outer
        return layer(self.inner(x).type_as(layer.weight))


class Batches(Module):
    """A batch norm, whose statistics stay in half precision where PEFT casts its weights, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(F.relu(self.norm(self.stem(self.inner(x).mT))).mT)


class ConvStem(Module):
    """A convolution that is given pixels in float32, then linear layers; a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, WIDTH, 4, stride=4), nn.GroupNorm(4, WIDTH)

    @staticmethod
    def example() -> dict[str, Any]:
        return {"pixels": torch.rand(2, 3, 16, 16, generator=devices.generator(0))}

    def forward(self, pixels: torch.Tensor) -> Any:
        hidden = self.inner(self.patches(pixels).flatten(2).mT)
        return self.outer(self.norm(hidden.mT).mT)


class Activations(Module):
    """Layers of torch's with weights: PReLU, a bilinear layer, an instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.both = nn.PReLU(12), nn.Bilinear(WIDTH, WIDTH, WIDTH)
        self.norm = nn.InstanceNorm1d(WIDTH, affine=True)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.slope(self.inner(x))
        return self.outer(self.norm(self.both(hidden, x).mT).mT)


class RecurrentHead(Module):
    """An LSTM, which compares dtypes in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.head(self.inner(x))[0])


class GatedCell(Module):
    """A cell that is called token by token, with a state made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        state = torch.zeros(2, WIDTH)
        for token in self.inner(x).unbind(1):
            state = self.cell(token, state)
        return self.outer(state)


class TiedHead(Module):
    """An embedding's weight, multiplied outside of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return F.linear(self.outer(F.silu(self.inner(x))), self.embedding.weight)


class Accumulated(Module):
    """A float32 buffer that half precision is added into in place, and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x)
        total = torch.zeros(2, 12, WIDTH).add_(hidden)
        return self.outer(torch.lerp(total, self.mean.expand_as(total), 0.1))


class WrittenCache(Module):
    """Keys written in place into a cache that was allocated in the configuration's dtype."""

    def forward(self, x: torch.Tensor) -> Any:
        cache = torch.zeros(2, 16, WIDTH, dtype=torch.bfloat16)
        cache[:, :12] = self.inner(x)
        cache.index_copy_(1, torch.arange(12, 14), self.inner(x)[:, :2])
        return self.outer((x @ cache.mT).softmax(-1) @ cache)


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class DataclassOutput(Module):
    """A dataclass of the module's own; the hidden states go through a matrix without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x)
        return Output(hidden, self.outer(hidden) @ self.projection)


class DictOutput(DataclassOutput):
    """A dictionary with lists."""

    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return {"scores": [output.logits], "hidden": (output.hidden,)}


class ListInput(Module):
    """A list of images of several sizes, as tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(12, WIDTH))

    @staticmethod
    def example() -> dict[str, Any]:
        return {"images": [torch.rand(1, size, WIDTH, generator=devices.generator(size)) for size in (5, 7)]}

    def forward(self, images: list[torch.Tensor]) -> Any:
        hidden = self.inner(torch.cat(images, dim=1))
        return self.outer(torch.bmm(hidden, self.position[None].mT) @ hidden)


MODULES: list[type[Module]] = [
    *(Merged, Scattered, Copied, Joined, CastInHelper, CastByProperty, CastByParameters, CastByName, Batches, ConvStem),
    *(
        Activations,
        RecurrentHead,
        GatedCell,
        TiedHead,
        Accumulated,
        WrittenCache,
        DataclassOutput,
        DictOutput,
        ListInput,
    ),
]
