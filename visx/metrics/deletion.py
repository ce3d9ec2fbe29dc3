"""Deletion: how fast a class disappears when pixels are taken away, strongest first.

The area under the probability of the class fixed on the clean image, from the clean picture to zero after
normalisation, which is the data set's mean colour (Petsiuk et al. 2018, arXiv:1806.07421, section 4.1). 224 steps, as
there for 224x224 pixels. Deviation: ties are broken by a seeded shuffle.
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
