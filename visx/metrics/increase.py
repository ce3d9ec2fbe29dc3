"""Increase in confidence: whether the probability of a class rises when the image is multiplied with its map.

1 where Y < O, else 0, with Y and O as in `average_drop`; the mean over images is the part of them where the probability rises
(Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063, section 4.1). Deviations from the paper: none.
"""

from __future__ import annotations

from visx.metrics.common.masking import clean_and_masked
from visx.metrics.contract import Measured, Trial, metric
from visx.params import Params


@metric(
    "increase",
    kind="map",
    title="Whether the probability rises behind the map",
    source="arXiv:1710.11063",
    low=0,
    high=1,
    better="higher",
)
def increase(trial: Trial, p: Params) -> Measured:
    clean, masked = clean_and_masked(trial)
    return Measured(float(clean < masked), details={"clean": clean, "masked": masked})
