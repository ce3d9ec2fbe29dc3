"""Top-k intersection: the part of the strongest pixels that two maps share.

|top_k(a) & top_k(b)| / k (Ghorbani et al. 2017, arXiv:1710.10547, section 2), k a part of all pixels. Two unrelated maps share
k / pixels on average. Where pixels of equal value compete for the last places, one random order decides for both maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.metrics.contract import metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class TopKParams(Params):
    part: float = Field(0.1, gt=0, le=1, description="the strongest pixels, as a part of all")


@metric(
    "top_k",
    kind="pair",
    title="Part of the strongest pixels that two maps share",
    source="arXiv:1710.10547",
    low=0,
    high=1,
    better="higher",
    params=TopKParams,
)
def top_k(a: np.ndarray, b: np.ndarray, p: TopKParams) -> float:
    """The shared part of the top k for maps (H, W) of one shape."""
    import numpy as np

    from visx.metrics.common.scaling import order

    k = max(1, round(p.part * a.size))
    return len(np.intersect1d(order(a, 0)[:k], order(b, 0)[:k], assume_unique=True)) / k
