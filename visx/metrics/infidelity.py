"""Infidelity: the squared error of the map's prediction of how a perturbation changes the score.

E[(b I.M - (S(x) - S(x - I)))^2], I ~ N(0, noise^2), S the explained score (Yeh et al. 2019, arXiv:1901.09392, definition 2.1).
With `rescale` (the default) b is the factor that makes the error least, the paper's optimal scaling (section 2.3), because
most maps have no unit. Else b is 1.

Deviation from the paper: all channels of a pixel get the same perturbation, because a map has one value a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Measured, Trial, metric
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor


class InfidelityParams(Params):
    samples: int = Field(64, ge=1, description="perturbed copies")
    noise: float = Field(0.2, gt=0, description="deviation of the perturbation, after normalisation")
    rescale: bool = Field(True, description="multiply the map by the factor that suits it best")


@metric(
    "infidelity",
    kind="map",
    title="Squared error of the map's prediction of what noise does to the score",
    source="arXiv:1901.09392",
    low=0,
    high=None,
    better="lower",
    params=InfidelityParams,
)
def infidelity(trial: Trial, p: InfidelityParams) -> Measured:
    import numpy as np
    import torch

    from visx.seeds import normal

    shape = (1, *trial.values.shape)

    def noise(start: int, stop: int) -> Tensor:
        return p.noise * normal(trial.seed, shape, start, stop)

    def copies(start: int, stop: int) -> Tensor:
        return trial.x - noise(start, stop).to(trial.x)

    clean = trial.scores(1, lambda start, stop: trial.x[None], trial.kind)[0]
    drop = clean - trial.scores(p.samples, copies, trial.kind)
    values = torch.from_numpy(trial.values)
    predicted = np.array([float((noise(i, i + 1)[0, 0].double() * values).sum()) for i in range(p.samples)])
    square = float(predicted @ predicted)
    factor = float(predicted @ drop) / square if p.rescale and square > 0 else 1.0
    return Measured(float(np.mean((factor * predicted - drop) ** 2)), details={"factor": factor})
