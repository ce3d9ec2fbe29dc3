"""What insertion and deletion share: pixels change over from one picture to another in the order of the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from visx.metrics.common.scaling import order
from visx.metrics.contract import Measured, Trial

if TYPE_CHECKING:
    from torch import Tensor

STEPS_HELP = "equal steps from no pixel to all"


def curve(trial: Trial, start: Tensor, end: Tensor, steps: int) -> Measured:
    """The area under the target's probability while pixels of `start` (C, H, W) become those of `end`, strongest first.

    All `steps` + 1 pictures are composed on the device from the pixels' ranks, batch by batch.
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
        over = rank_hw < bounds[first:stop, None, None]
        return torch.where(over[:, None], end, start)

    scores = trial.probabilities(len(changed), copies)
    parts = changed / pixels
    return Measured(float(auc(parts, scores)), list(zip(parts.tolist(), scores.tolist(), strict=True)))
