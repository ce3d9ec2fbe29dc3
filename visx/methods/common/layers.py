"""What methods of a layer share: warnings that a reader of their maps needs, and one map of several layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from visx.ops.maps import upsample

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.grid import Layer

FAINTEST = 1e-30  # the largest value of a map that is scaled; a map of zeros stays one


def layer_warnings(layer: Layer) -> list[str]:
    """Warnings about a layer that runs several times in one pass, or whose map has a single cell; empty for any other.

    Every method that declares `needs={"layer"}` adds them to the warnings of each of its maps.
    """
    assert layer.grid is not None
    warnings = []
    if layer.calls > 1:
        which = "its last output" if layer.call == layer.runs - 1 else f"its output of run {layer.call + 1}"
        warnings.append(f"layer {layer.name} runs {layer.calls} times in one pass: {which} is explained")
    if layer.grid.single:
        warnings.append(f"layer {layer.name} has one cell, so its map is the same everywhere")
    return warnings


def fused(maps: Sequence[Tensor]) -> Tensor:
    """One map (B, T, H, W) of the maps (B, T, h, w) of several layers: their mean, each divided by its largest absolute
    value and upsampled bilinearly to the largest of their grids, so in -1..1. The map of a single layer as it is.

    Layers have gradients of very different sizes; undivided, one of them would hide the others. The package grad-cam takes
    the mean of maps that it scales from their minimum to their maximum, torch-cam their maximum.
    """
    if len(maps) == 1:
        return maps[0]
    import torch

    size = [max(m.shape[axis] for m in maps) for axis in (-2, -1)]
    scaled = [m / m.abs().amax((-2, -1), keepdim=True).clamp_min(FAINTEST) for m in maps]
    return torch.stack([upsample(m, size) for m in scaled]).mean(0)
