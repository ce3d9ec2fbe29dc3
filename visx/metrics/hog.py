"""Pearson's correlation of two maps' histograms of oriented gradients (HOG): whether the edges of the maps agree.

HOG: Dalal and Triggs 2005, doi:10.1109/CVPR.2005.177, computed by scikit-image (9 orientations, blocks of 3x3 cells, L2-Hys).
Cells of 16x16 pixels and the correlation are those of SAM (arXiv:2003.08754).

Deviation from SAM: each map is first divided by its largest absolute value. Else the small constant in the normalisation of
blocks would make the value depend on a map's scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.errors import usage
from visx.metrics.contract import metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class HOGParams(Params):
    cell: int = Field(16, ge=2, description="side of a cell in pixels")
    block: int = Field(3, ge=1, description="side of a block in cells")
    orientations: int = Field(9, ge=2, description="directions of the histogram")


@metric(
    "hog",
    kind="pair",
    title="Correlation of two maps' oriented edges",
    source="arXiv:2003.08754",
    low=-1,
    high=1,
    better="higher",
    params=HOGParams,
)
def hog(a: np.ndarray, b: np.ndarray, p: HOGParams) -> float:
    """The correlation for maps (H, W) of one shape; 0 where one map has no edges, 1 where both have none."""
    import numpy as np
    from scipy.stats import pearsonr
    from skimage.feature import hog as features_of

    from visx.metrics.common.scaling import by_largest, correlation

    side = p.cell * p.block
    if min(a.shape) < side:
        raise usage(f"hog: a block of {side} pixels does not fit maps of {a.shape[0]}x{a.shape[1]}", "-p hog.cell=8")

    def features(values: np.ndarray) -> np.ndarray:
        histograms = features_of(by_largest(values), p.orientations, (p.cell, p.cell), (p.block, p.block))
        return np.asarray(histograms, dtype=np.float64)

    return correlation(features(a), features(b), lambda u, v: float(np.clip(pearsonr(u, v).statistic, -1.0, 1.0)))
