"""Gaussian blur of normalised images, for baselines and for the pixels that perturbations insert."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Images (B, C, H, W), blurred with a standard deviation of `sigma` pixels; 0 and less leave them unchanged.

    The edge pixels are repeated beyond the border, so that a constant image stays constant.
    """
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
