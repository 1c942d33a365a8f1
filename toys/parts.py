"""Parts of a model that are no layer of bitsandbytes'."""

from __future__ import annotations

import torch
from torch import nn

from .layers import SIZE


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, SIZE))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden_states, self.weight).softmax(-1)


class Experts(nn.Module):
    """Two outputs, and a product that the model upcasts on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(4, SIZE, 8))

    def forward(self, hidden_states: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        up = hidden_states.float().pow(2).mean(-1)
        return torch.bmm(hidden_states.expand(4, -1, -1), self.gate) * scale, up


class Twice(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)
