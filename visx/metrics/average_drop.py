"""Average drop: the part of a class's probability that is lost when the image is multiplied with its map.

max(0, Y - O) / Y, Y the probability of the class for the clean image, O that for the image times the map (Chattopadhay et al.
2018, Grad-CAM++, arXiv:1710.11063, section 4.1).

Deviation from the paper: values are in 0..1, not in percent.
"""

from __future__ import annotations

from visx.metrics.common.masking import clean_and_masked
from visx.metrics.contract import Measured, Trial, metric
from visx.params import Params


@metric(
    "average_drop",
    kind="map",
    title="Part of the probability lost behind the map",
    source="arXiv:1710.11063",
    low=0,
    high=1,
    better="lower",
)
def average_drop(trial: Trial, p: Params) -> Measured:
    clean, masked = clean_and_masked(trial)
    return Measured(max(0.0, clean - masked) / clean if clean > 0 else 0.0, details={"clean": clean, "masked": masked})
