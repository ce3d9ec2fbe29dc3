"""Intersection over union of two thresholded maps: of the pixels above a part of each map's own maximum.

The Jaccard index of {a > t max(a)} and {b > t max(b)}. Negative values never count. Two maps without positive values have the
value 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class IoUParams(Params):
    threshold: float = Field(0.5, ge=0, lt=1, description="part of the map's maximum")


@metric(
    "iou",
    kind="pair",
    title="Overlap of two thresholded maps",
    source="doi:10.1111/j.1469-8137.1912.tb05611.x",
    low=0,
    high=1,
    better="higher",
    params=IoUParams,
)
def iou(a: np.ndarray, b: np.ndarray, p: IoUParams) -> float:
    """The intersection over union for maps (H, W) of one shape."""

    def support(values: np.ndarray) -> np.ndarray:
        return values > p.threshold * max(float(values.max()), 0.0)

    first, second = support(a), support(b)
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
