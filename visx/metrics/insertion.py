"""Insertion: how fast a class appears when pixels come back to a blurred picture, strongest first.

The area under the probability of the class fixed on the clean image, from the blurred picture to the clean one
(Petsiuk et al. 2018, arXiv:1806.07421, section 4.1). 224 steps, as there for 224x224 pixels. Deviations: the blur has
deviation 5 like the original's, which however cuts its kernel off at 11x11 and pads with zeros, so it blurs less inside
and darkens the border; ties are broken by a seeded shuffle. SAM's program (arXiv:2003.08754) starts from zero instead,
takes 28 steps, and divides the area by the curve's largest value, for deletion too.
"""

from __future__ import annotations

from visx.metrics.common.removal import STEPS_HELP, curve
from visx.metrics.contract import Measured, Trial, metric
from visx.params import Field, Params


class InsertionParams(Params):
    steps: int = Field(224, ge=1, description=STEPS_HELP)
    blur_radius: float = Field(5.0, gt=0, description="deviation of the starting picture's blur, in input pixels")


@metric(
    "insertion",
    kind="map",
    title="Area under the probability while the strongest pixels come back",
    source="arXiv:1806.07421",
    low=0,
    high=1,
    better="higher",
    params=InsertionParams,
)
def insertion(trial: Trial, p: InsertionParams) -> Measured:
    from visx.ops.blur import gaussian_blur

    return curve(trial, gaussian_blur(trial.x[None], p.blur_radius)[0], trial.x, p.steps)
