"""Gaussian blur of normalised images, as a baseline and as the substrate that perturbations replace pixels with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) -> the same, blurred with deviation `sigma` pixels; edges are replicated, so a constant stays one."""
    if sigma <= 0:
        return x
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    channels = x.shape[1]
    rows = F.conv2d(
        F.pad(x, (0, 0, reach, reach), mode="replicate"),
        kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1),
        groups=channels,
    )
    return F.conv2d(
        F.pad(rows, (reach, reach, 0, 0), mode="replicate"),
        kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1),
        groups=channels,
    )
