"""Max-sensitivity: the largest relative change of a map when the input changes a little.

max over |y - x| <= radius (in every value) of |M(y) - M(x)| / |M(x)|, with `samples` uniformly random y (Yeh et al. 2019,
arXiv:1901.09392, definition 3.1). The radius is in units of the normalised input. The class and the method's random numbers
stay those of x.

Deviation from the paper: the change is divided by the map's norm, as in captum.
"""

from __future__ import annotations

from visx.metrics.contract import Measured, Trial, metric
from visx.params import Field, Params


class MaxSensitivityParams(Params):
    samples: int = Field(10, ge=1, description="neighbours of the input")
    radius: float = Field(0.02, gt=0, description="farthest shift of a value, after normalisation")


@metric(
    "max_sensitivity",
    kind="map",
    title="Largest relative change of the map in a small box around the input",
    source="arXiv:1901.09392",
    low=0,
    high=None,
    better="lower",
    params=MaxSensitivityParams,
)
def max_sensitivity(trial: Trial, p: MaxSensitivityParams) -> Measured:
    import numpy as np
    import torch

    from visx.seeds import generator

    def work(start: int, stop: int) -> np.ndarray:
        shifts = [
            torch.rand(trial.x.shape, generator=generator(trial.seed, "box", i), dtype=torch.float32)
            for i in range(start, stop)
        ]
        moved = trial.explain(trial.x + p.radius * (2 * torch.stack(shifts) - 1).to(trial.x))
        return np.sqrt(np.square(moved - trial.values).sum((1, 2)))

    farthest = float(np.concatenate(list(trial.score.batches(p.samples, work))).max())
    size = float(np.sqrt(np.square(trial.values).sum()))
    return Measured(farthest / size if size > 0 else float(farthest > 0))
