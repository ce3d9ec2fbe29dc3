"""Max-sensitivity: how far a map moves at most when the input moves a little.

max over y in the box |y - x| <= radius of |M(y) - M(x)| / |M(x)|, by sampling y uniformly (Yeh et al. 2019,
arXiv:1901.09392, definition 3.1, relative to the map's norm as captum has it). The radius is in normalised units. The
class and the random stream of the method stay those of x.
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
