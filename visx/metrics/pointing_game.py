"""Pointing game: whether the map's maximum lies in an annotated box, or within 15 pixels of one.

Zhang et al. 2016, arXiv:1608.00507, section 4.1: the part of hits among all images, averaged within each class first.

Deviations from the paper: the tolerance is in pixels of the network's input. Among several pixels of the maximal value the
seed picks one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Box, Measured, metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class PointingGameParams(Params):
    tolerance: float = Field(15.0, ge=0, description="distance from the box that still hits, in input pixels")


@metric(
    "pointing_game",
    kind="box",
    title="Whether the map's maximum lies in the annotated box",
    source="arXiv:1608.00507",
    low=0,
    high=1,
    better="higher",
    average="class",
    params=PointingGameParams,
)
def pointing_game(values: np.ndarray, boxes: list[Box], seed: int, p: PointingGameParams) -> Measured:
    import math

    from visx.metrics.common.scaling import order

    row, column = divmod(int(order(values, seed)[0]), values.shape[1])
    x, y = column + 0.5, row + 0.5
    distance = min(
        math.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom)) for left, top, right, bottom in boxes
    )
    return Measured(float(distance <= p.tolerance), details={"point": [column, row], "distance": distance})
