"""Localisation: the overlap of an annotated box with the box around the strong part of the map.

For each threshold of 0.1 to 0.5 of the map's maximum in steps of 0.05: the tight box around all pixels at or above it, and its
intersection over union with the annotated box. The value is the mean over the thresholds, so that none is chosen with the
answer known. `best=true` takes the best threshold of each image (SAM, arXiv:2003.08754, after Zhou et al. 2015,
arXiv:1512.04150).

Deviation from SAM's program: of several annotated boxes the best one counts; the program takes them as one region.
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
        strong = tight_box(values >= threshold * top) if top > 0 else None
        overlaps.append(max(overlap(strong, box) for box in boxes) if strong else 0.0)
    value = max(overlaps) if p.best else sum(overlaps) / len(overlaps)
    return Measured(value, details={"thresholds": list(THRESHOLDS), "iou": overlaps})
