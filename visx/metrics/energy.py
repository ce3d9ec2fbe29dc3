"""Energy-based pointing game: the part of the map's positive values that lies inside the annotated boxes.

Wang et al. 2019, Score-CAM, arXiv:1910.01279, section 4.3.

Deviations from the paper: a pixel that a box cuts counts by the part of the pixel that is inside. A map without positive values has the value 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Box, Measured, metric
from visx.params import Params

if TYPE_CHECKING:
    import numpy as np


@metric(
    "energy",
    kind="box",
    title="Part of the map's positive values inside the annotated boxes",
    source="arXiv:1910.01279",
    low=0,
    high=1,
    better="higher",
)
def energy(values: np.ndarray, boxes: list[Box], seed: int, p: Params) -> Measured:
    import numpy as np

    from visx.metrics.common.regions import coverage

    positive = np.maximum(values, 0)
    total, shape = float(positive.sum()), (values.shape[0], values.shape[1])
    return Measured(float((positive * coverage(boxes, shape)).sum()) / total if total > 0 else 0.0)
