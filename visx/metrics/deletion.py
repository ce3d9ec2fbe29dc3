"""Deletion: how fast the probability of a class falls when pixels are removed, strongest first.

The value is the area under the curve of that probability, from the clean image to an image of zeros after normalisation (the
training set's mean colour). The class is the one that was explained (Petsiuk et al. 2018, arXiv:1806.07421, section 4.1). 224
steps, as in the paper for 224 x 224 pixels.

Deviation from the paper: pixels of equal value are removed in a random order that the seed fixes.
"""

from __future__ import annotations

from visx.metrics.common.removal import STEPS_HELP, curve
from visx.metrics.contract import Measured, Trial, metric
from visx.params import Field, Params


class DeletionParams(Params):
    steps: int = Field(224, ge=1, description=STEPS_HELP)


@metric(
    "deletion",
    kind="map",
    title="Area under the probability while the strongest pixels go",
    source="arXiv:1806.07421",
    low=0,
    high=1,
    better="lower",
    params=DeletionParams,
)
def deletion(trial: Trial, p: DeletionParams) -> Measured:
    import torch

    return curve(trial, trial.x, torch.zeros_like(trial.x), p.steps)
