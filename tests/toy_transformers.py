"""Toy transformers in float64, each also rewritten by hand with `.detach()` so that its plain gradient is a relevance rule's."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES

Mode = Literal["plain", "libra", "attnlrp"]
# Parameters by which the plain gradient passes linear layers
EPSILON: dict[str, dict[str, Any]] = {"libragrad": {}, "attnlrp": {"gamma": 0, "gamma_conv": 0}}


def half(y: Tensor) -> Tensor:
    """A value whose gradient is halved."""
    return y / 2 + (y / 2).detach()


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """A value y whose derivative by x is y / x."""
    return x * (y / x).detach()


class Norm(nn.LayerNorm):
    """Layer normalisation, or RMS normalisation written as arithmetic; its scale is a constant in every mode but plain."""

    def __init__(self, dim: int, mode: Mode, bias: bool, rms: bool) -> None:
        super().__init__(dim, bias=bias)
        nn.init.uniform_(self.weight, 0.5, 1.5)
        self.mode, self.rms = mode, rms

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "plain" and not self.rms:
            return super().forward(x)
        centred = x if self.rms else x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        y = centred * (scale if self.mode == "plain" else scale.detach()) * self.weight
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Self-attention, fused or as it is written out."""

    def __init__(self, dim: int, heads: int, mode: Mode, bias: bool, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.heads, self.mode, self.fused = heads, mode, fused

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.mode == "plain" and self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
            scores = half(scores) if self.mode == "attnlrp" else scores
            probabilities = scores.softmax(-1)
            out = (probabilities.detach() if self.mode == "libra" else probabilities) @ v
            out = half(out) if self.mode == "attnlrp" else out
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear layers with an activation between them, or a gated pair of the first."""

    def __init__(self, dim: int, mode: Mode, bias: bool, gated: bool, activation: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, 2 * dim, bias=bias), nn.Linear(2 * dim, dim, bias=bias)
        self.gate = nn.Linear(dim, 2 * dim, bias=bias) if gated else None
        self.mode, self.activation = mode, ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.activation(h)
        y = y if self.mode == "plain" else ratio(h, y)
        if self.gate is not None:
            y = y * self.gate(x)
            y = y if self.mode == "plain" else half(y)
        return self.second(y)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu written out": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu tanh written out": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "hardswish": F.hardswish,
    "hardswish written out": lambda x: x * F.relu6(x + 3) / 6,
    "mish": F.mish,
    "mish written out": lambda x: x * F.softplus(x).tanh(),
    "tanh": torch.tanh,
    "elu": F.elu,
    "elu in place": lambda x: F.elu(x.clone(), inplace=True),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "square of relu": lambda x: F.relu(x) ** 2,
    "square of relu as a product": lambda x: F.relu(x) * F.relu(x),
    "softsign": F.softsign,
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
}


class ToyViT(nn.Module):
    """Patches of 4 pixels, a class token (none without biases: it would be one), two blocks, the mean of all tokens."""

    def __init__(
        self,
        mode: Mode = "plain",
        *,
        bias: bool = True,
        fused: bool = True,
        gated: bool = False,
        rms: bool = False,
        activation: str = "gelu",
        dim: int = 8,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4, bias=bias)
        self.token = nn.Parameter(torch.randn(1, 1, dim)) if bias else None
        self.norms = nn.ModuleList(Norm(dim, mode, bias, rms) for _ in range(2 * depth + 1))
        self.attention = nn.ModuleList(Attention(dim, 2, mode, bias, fused) for _ in range(depth))
        self.mlps = nn.ModuleList(Mlp(dim, mode, bias, gated, activation) for _ in range(depth))
        self.head = nn.Linear(dim, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            t = torch.cat([self.token.expand(len(t), -1, -1), t], 1)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            t = t + attention(self.norms[2 * i](t))
            t = t + mlp(self.norms[2 * i + 1](t))
        return self.head(self.norms[-1](t).mean(1))
