"""Hiding: what a mask hides shows other pixels (fill), or its tokens are left out of a vision transformer (drop)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Hide = Literal["fill", "drop"]
HIDE_HELP = (
    "fill shows other pixels; drop leaves hidden tokens out of a plain vision transformer, so that a copy costs its visible "
    "tokens only (a token goes where its mask's mean over its patch is under one half; fill has no use then)"
)
ROUNDING = 1e-5  # means that should be one half count as such


def needs_of(hide: str) -> frozenset[str]:
    """What a way of hiding needs of a model."""
    return frozenset({"droppable"}) if hide == "drop" else frozenset()


def visible(means: Tensor) -> Tensor:
    """The patches that stay, bool, of the means of masks (1 keeps) over each patch."""
    return means >= 0.5 - ROUNDING


def visible_patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, rows x columns) bool: the patches of a grid that masks (N, H, W) in 0..1 keep."""
    import torch.nn.functional as F

    return visible(F.adaptive_avg_pool2d(masks[:, None], grid).flatten(1))
