"""Localisation: the overlap of the annotated box with the box around the map's strong part.

As SAM measures it (arXiv:2003.08754, after Zhou et al. 2015, arXiv:1512.04150): the positive part of the map, thresholds
of 0.1 to 0.5 of its maximum in steps of 0.05, the tight box around what remains, intersection over union with the
annotated box (the best one where there are several; SAM's program takes them all as one region). The value is the mean
over the thresholds, which picks none with knowledge of the answer; `best=true` takes the best threshold of each image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Box, Measured, metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(9))


class LocalisationParams(Params):
    best: bool = Field(False, description="the best threshold's overlap instead of the mean over thresholds")


@metric(
    "localisation",
    kind="box",
    title="Overlap of the box around the map's strong part with the annotated box",
    source="arXiv:2003.08754",
    low=0,
    high=1,
    better="higher",
    params=LocalisationParams,
)
def localisation(values: np.ndarray, boxes: list[Box], seed: int, p: LocalisationParams) -> Measured:
    from visx.metrics.common.regions import overlap, tight_box

    top = float(values.max())
    overlaps = []
    for threshold in THRESHOLDS:
        found = tight_box(values >= threshold * top) if top > 0 else None
        overlaps.append(max(overlap(found, box) for box in boxes) if found else 0.0)
    value = max(overlaps) if p.best else sum(overlaps) / len(overlaps)
    return Measured(value, details={"thresholds": list(THRESHOLDS), "iou": overlaps})
