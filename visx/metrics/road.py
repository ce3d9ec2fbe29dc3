"""ROAD (remove and debias): how much the probability depends on the strongest pixels, compared with the weakest.

Pixels are removed by rank, the strongest first (MoRF) or the weakest first (LeRF). Removed pixels are replaced by noisy linear
imputation, which hides the shape of what was removed (Rong et al. 2022, arXiv:2202.00449). The value is half the mean of
LeRF - MoRF over the removed parts 20, 40, 60 and 80 % (the combination of pytorch-grad-cam). The curves are in the details.

Deviations from the paper: the probability instead of the accuracy, so that one image has a value. Pixels of equal value are
removed in a random order that the seed fixes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Measured, Trial, metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class ROADParams(Params):
    steps: int = Field(4, ge=1, description="parts removed: i / (steps + 1), i = 1..steps")
    noise: float = Field(0.01, ge=0, description="deviation of the noise on imputed pixels, after normalisation")


@metric(
    "road",
    kind="map",
    title="Remove and debias: probability without the weakest less without the strongest pixels, halved",
    source="arXiv:2202.00449",
    low=-0.5,
    high=0.5,
    better="higher",
    params=ROADParams,
)
def road(trial: Trial, p: ROADParams) -> Measured:
    import numpy as np
    import torch

    from visx.metrics.common.imputing import impute
    from visx.metrics.common.scaling import order

    ranking = order(trial.values, trial.seed)
    x = trial.x.double().cpu().numpy()
    parts = [i / (p.steps + 1) for i in range(1, p.steps + 1)]

    def without(number: int) -> np.ndarray:
        """(C, H, W): the image without its strongest pixels for numbers below `p.steps`, without its weakest from there on."""
        first = ranking if number < p.steps else ranking[::-1]
        removed = np.zeros(trial.values.size, dtype=bool)
        removed[first[: round(parts[number % p.steps] * first.size)]] = True
        removed_hw = removed.reshape(trial.values.shape)
        noise = np.random.default_rng((trial.seed, number)).normal(size=x.shape)
        return impute(x, removed_hw) + p.noise * noise * removed_hw

    def copies(start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.stack([without(i) for i in range(start, stop)])).to(trial.x)

    scores = trial.probabilities(2 * p.steps, copies)
    strongest, weakest = scores[: p.steps], scores[p.steps :]
    details = {"parts": parts, "morf": strongest.tolist(), "lerf": weakest.tolist()}
    return Measured(float((weakest - strongest).mean() / 2), details=details)
