"""Insertion: how fast the probability of a class rises when pixels return to a blurred image, strongest first.

The value is the area under the curve of that probability, from the blurred image to the clean one. The class is the one that
was explained (Petsiuk et al. 2018, arXiv:1806.07421, section 4.1). 224 steps, as in the paper for 224 x 224 pixels.

Deviations from the authors' program: the blur has a standard deviation of 5 pixels in both, but the program cuts its kernel
off at 11x11 and pads with zeros, so that it blurs less and darkens the border. Pixels of equal value return in a random order
that the seed fixes. SAM's program (arXiv:2003.08754) differs from both: it starts from zeros, takes 28 steps, and divides the
area by the curve's largest value, for deletion too.
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
