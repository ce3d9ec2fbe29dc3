"""RISE's masks, made one at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visx.seeds import generator


def slow_masks(seed: int, count: int, cells: int, p: float, height: int, width: int) -> Tensor:
    """Section 3.2 mask by mask: a small grid, upsampled to one cell more, cropped at random."""
    masks = []
    for i in range(count):
        draws = torch.rand(cells * cells + 2, generator=generator(seed, i))
        grid = torch.tensor([1.0 if d < p else 0.0 for d in draws[:-2]], dtype=torch.float64).view(1, 1, cells, cells)
        ch, cw = int(np.ceil(height / cells)), int(np.ceil(width / cells))
        large = F.interpolate(grid, ((cells + 1) * ch, (cells + 1) * cw), mode="bilinear", align_corners=False)[0, 0]
        top, left = int(draws[-2] * ch), int(draws[-1] * cw)
        masks.append(large[top : top + height, left : left + width])
    return torch.stack(masks)
