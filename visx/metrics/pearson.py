"""Pearson's correlation of two maps, pixel by pixel: 1 where they differ by a positive factor and an offset only.

Computed by SciPy. SAM (arXiv:2003.08754) takes this correlation of HOG features: that is the metric `hog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import metric
from visx.params import Params

if TYPE_CHECKING:
    import numpy as np


@metric(
    "pearson",
    kind="pair",
    title="Linear correlation of two maps",
    source="arXiv:2003.08754",
    low=-1,
    high=1,
    better="higher",
)
def pearson(a: np.ndarray, b: np.ndarray, p: Params) -> float:
    """The correlation for maps (H, W) of one shape; 0 where one map is constant, 1 where both are."""
    import numpy as np
    from scipy.stats import pearsonr

    from visx.metrics.common.scaling import by_largest, correlation

    return correlation(by_largest(a), by_largest(b), lambda u, v: float(np.clip(pearsonr(u, v).statistic, -1.0, 1.0)))
