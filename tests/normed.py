"""Toy networks with batch normalisations, in float64: those that fold, those that don't, and calls seldom written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def settled(module: nn.Module) -> nn.Module:
    """Float64, eval mode, statistics and affine values that are not the initial ones."""
    g = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for name in ("running_mean", "running_var", "weight", "bias"):
                tensor = getattr(m, name)
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=g) + 0.5
    return module.double().eval().requires_grad_(False)


class Plain(nn.Module):
    """Grouped, biased, dilated and plain convolutions; modules and functional forms; a normalisation without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8, eps=0.1)
        self.b, self.nb = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8, affine=False)
        self.c, self.nc = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.first, self.head = nn.BatchNorm2d(3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.na(self.a(self.first(x))))
        x = F.relu(self.nb(self.b(x)), inplace=True)
        y = F.conv2d(x, self.c.weight, None, stride=1)
        x = F.batch_norm(y, self.nc.running_mean, self.nc.running_var, self.nc.weight, self.nc.bias, False, 0.1, 0.01)
        return self.head(x.mean((2, 3)))


def pictures(size: int = 12) -> Tensor:
    return torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Shared(nn.Module):
    """One convolution twice, a normalisation twice, a convolution that is read beside its normalisation, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.n1, self.n2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.c3, self.c4, self.n3 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c5, self.n5 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c6, self.n6 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n2(self.conv(self.n1(self.conv(x))))
        x = self.n3(self.c4(self.n3(self.c3(x))))
        y = self.c5(x)
        x = torch.cat([y, self.n5(y)], 1)[:, :3]
        return self.n6(self.c6(x)).mean((2, 3))


class Mixed(Shared):
    """As well: a weight that is made anew in every pass, as a parametrised one is, and one pair that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.c7, self.n7 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c8, self.n8 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n7(F.conv2d(x, self.c7.weight * 1.5, self.c7.bias))
        return super().forward(self.n8(self.c8(x)))


class Blocks(nn.Module):
    """Convolution, normalisation and an in-place ReLU twice, a pooled linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Rectified(nn.Module):
    """ReLUs behind normalisations: in place, by themselves, with a ceiling, with their input read elsewhere, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = (lambda x, n=n: self.norms[n](self.convs[n](x)) for n in range(6))
        x = F.relu(a(x))
        x = b(x).relu_() * 2
        x = F.relu6(4 * c(x), inplace=True)  # not the normalisation's own output
        x = F.relu6(d(x), inplace=True)
        y = e(x)
        x = F.relu(y) + y
        z = f(x)
        return (torch.relu(z) + torch.clamp(z, 0, 1)).mean((2, 3))


class Oddities(nn.Module):
    """Calls that the operators beneath don't know, or that are seldom written: padding by name, an image without a batch,
    one dimension, strides and padding of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 4, 3, padding="same", dilation=2),
                nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2, bias=False),
                nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
                nn.Conv1d(4, 4, 3, stride=2, padding=1),
                nn.Conv2d(4, 4, 1),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.BatchNorm2d(4), nn.BatchNorm1d(4)])
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs[:3], self.norms[:3], strict=True):
            x = F.relu(norm(conv(x)))
        x = self.norms[3](self.convs[3](x.flatten(2)))
        images = [self.last(self.convs[4](image[:, None])[None]) for image in x[:1]]  # (C, H, W) into the convolution
        return x.mean(2) + images[0].mean((2, 3))
