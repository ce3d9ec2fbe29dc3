"""From channels to one map, and from a coarse map to input size. Values are not scaled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Reduce = Literal["max_abs", "mean", "sum", "l2"]
REDUCE_HELP = "how the channels become one map: max_abs (Simonyan et al. 2013), mean, sum or l2"


def reduce_channels(channels: Tensor, how: Reduce) -> Tensor:
    """One map (..., H, W) of the channels (..., C, H, W); `how` is explained in `REDUCE_HELP`."""
    if how == "max_abs":
        import torch

        # channel by channel: `amax` over a channels-last gradient takes three times as long
        return reduce(torch.maximum, channels.abs().unbind(-3))
    if how == "mean":
        return channels.mean(-3)
    if how == "sum":
        return channels.sum(-3)
    return channels.square().sum(-3).sqrt()


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, T, h, w), upsampled bilinearly (`align_corners=False`) to (B, T, H, W); `size` is (H, W)."""
    import torch.nn.functional as F

    return (
        maps
        if tuple(maps.shape[-2:]) == tuple(size)
        else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    )
