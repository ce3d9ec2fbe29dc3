"""What average drop and increase share: the picture seen through its own map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import Trial

if TYPE_CHECKING:
    from torch import Tensor


def clean_and_masked(trial: Trial) -> tuple[float, float]:
    """(probability on the clean image, on the image times the map). The map's positive part is scaled from its minimum
    to its maximum onto 0..1 (a constant one becomes 1 everywhere, one without positive values 0); zero is the normalised
    image's zero, the data set's mean colour."""
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
