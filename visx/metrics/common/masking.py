"""Masking for the metrics average drop and increase: the image times its own map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Trial

if TYPE_CHECKING:
    from torch import Tensor


def clean_and_masked(trial: Trial) -> tuple[float, float]:
    """The probability of the explained class for the clean image, and for the image times the map.

    The positive part of the map is scaled to 0..1, minimum to maximum. A constant positive map becomes 1 everywhere, a map
    without positive values 0. The normalised image is multiplied, so that 0 is the training set's mean colour.
    """
    import numpy as np
    import torch

    mask = np.maximum(trial.values, 0)
    low, high = mask.min(), mask.max()
    mask = (mask - low) / (high - low) if high > low else (mask > 0).astype(np.float64)

    def copies(start: int, stop: int) -> Tensor:
        both = torch.stack([trial.x, trial.x * torch.from_numpy(mask).to(trial.x)])
        return both[start:stop]

    clean, masked = trial.probabilities(2, copies).tolist()
    return clean, masked
