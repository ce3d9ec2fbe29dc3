"""An answer as a picture."""

from __future__ import annotations

import numpy as np

from visx.draw.overlay import gradient_picture, overlay
from visx.engine.jobs import Job
from visx.images.geometry import Placement


def draw(
    rgb: np.ndarray,
    place: Placement,
    job: Job,
    values: np.ndarray,
    channels: np.ndarray | None,
    colormap: str,
    alpha: float,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """A result's picture (H, W, 3) uint8: a gradient picture where the method declares one, else an overlay.

    `scale` replaces the limits of the map (of the gradient, where that is drawn)."""
    if job.method.picture == "gradient" and channels is not None:
        return gradient_picture(rgb, channels, place, scale)
    return overlay(rgb, values, place, job.signed, colormap, alpha, scale)
