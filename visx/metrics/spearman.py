"""Spearman's rank correlation of two maps, pixel by pixel: 1 where one map is an increasing function of the other.

Spearman 1904; for maps: Adebayo et al. 2018 (arXiv:1810.03292), SAM (arXiv:2003.08754). Pixels of equal value share their mean
rank. Computed by SciPy. `absolute=true` compares absolute values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class SpearmanParams(Params):
    absolute: bool = Field(False, description="compare absolute values")


@metric(
    "spearman",
    kind="pair",
    title="Rank correlation of two maps",
    source="arXiv:1810.03292",
    low=-1,
    high=1,
    better="higher",
    params=SpearmanParams,
)
def spearman(a: np.ndarray, b: np.ndarray, p: SpearmanParams) -> float:
    """The rank correlation for maps (H, W) of one shape; 0 where one map is constant, 1 where both are."""
    import numpy as np
    from scipy.stats import spearmanr

    from visx.metrics.common.scaling import correlation

    if p.absolute:
        a, b = np.abs(a), np.abs(b)
    return correlation(a, b, lambda u, v: float(spearmanr(u, v).statistic))
