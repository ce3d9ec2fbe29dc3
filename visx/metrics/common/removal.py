"""Replacing pixels step by step in the order of a map, for the metrics insertion and deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from visx.metrics.common.scaling import order
from visx.metrics.contract import Measured, Trial

if TYPE_CHECKING:
    from torch import Tensor

STEPS_HELP = "equal steps from no pixel to all"


def curve(trial: Trial, start: Tensor, end: Tensor, steps: int) -> Measured:
    """The area under the target's probability while pixels of `start` (C, H, W) are replaced by those of `end`.

    The strongest pixels of the map come first. The curve of the result has steps + 1 points: the part of the pixels that
    is replaced, in 0..1, and the probability. The images are made on the device, batch by batch.
    """
    import torch
    from sklearn.metrics import auc

    pixels = trial.values.size
    ranks = np.empty(pixels, dtype=np.int64)
    ranks[order(trial.values, trial.seed)] = np.arange(pixels)
    rank_hw = torch.from_numpy(ranks.reshape(trial.values.shape)).to(trial.x.device)
    changed = np.rint(np.linspace(0, pixels, min(steps, pixels) + 1)).astype(np.int64)
    bounds = torch.from_numpy(changed).to(trial.x.device)

    def copies(first: int, stop: int) -> Tensor:
        replaced = rank_hw < bounds[first:stop, None, None]
        return torch.where(replaced[:, None], end, start)

    scores = trial.probabilities(len(changed), copies)
    parts = changed / pixels
    return Measured(float(auc(parts, scores)), list(zip(parts.tolist(), scores.tolist(), strict=True)))
