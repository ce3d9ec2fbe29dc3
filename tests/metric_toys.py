"""Toy models in float64 whose scores are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 12


class Mean(nn.Module):
    """The probability of class 0 is the mean of the pixels, which must lie in (0, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)).clamp(1e-12, 1 - 1e-12)
        return torch.stack([mean.log(), (1 - mean).log()], 1)


class Linear(nn.Module):
    """Two classes, logits linear in the pixels, and not zero where these are."""

    def __init__(self, channels: int = 3, side: int = SIDE) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        weight = torch.randn(2, channels, side, side, generator=random, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight) + 3.0


class Counted:
    """A forward without gradients that counts passes and copies."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls, self.copies = net, 0, 0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.calls, self.copies = self.calls + 1, self.copies + len(x)
        return self.net(x)
