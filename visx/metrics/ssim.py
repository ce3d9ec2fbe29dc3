"""Structural similarity (SSIM) of two maps: the mean over all windows, computed by scikit-image.

Wang et al. 2004, doi:10.1109/TIP.2003.819861, with the settings of SAM (arXiv:2003.08754): a uniform window of 5, each map
divided by its largest absolute value, a data range of 2. For the masks of meaningful perturbation, which lie in 0..1, SAM
neither divides nor takes 2: `scale=none`, `data_range=1`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.errors import usage
from visx.metrics.contract import metric
from visx.params import Field, Params

if TYPE_CHECKING:
    import numpy as np


class SSIMParams(Params):
    window: int = Field(5, ge=3, description="side of the window, odd")
    scale: Literal["max_abs", "none"] = Field("max_abs", description="divide each map by its largest absolute value")
    data_range: float = Field(2.0, gt=0, description="distance between the least and the largest possible value")


@metric(
    "ssim",
    kind="pair",
    title="Structural similarity of two maps",
    source="doi:10.1109/TIP.2003.819861",
    low=-1,
    high=1,
    better="higher",
    params=SSIMParams,
)
def ssim(a: np.ndarray, b: np.ndarray, p: SSIMParams) -> float:
    """The SSIM for maps (H, W) of one shape. Raises `VisxError` (usage, exit 2) where the window does not fit them."""
    import numpy as np
    from skimage.metrics import structural_similarity

    from visx.metrics.common.scaling import by_largest

    if p.window % 2 == 0 or p.window > min(a.shape):
        raise usage(f"ssim: window={p.window} does not fit maps of {a.shape[0]}x{a.shape[1]}", "odd, and no larger")
    prepare = by_largest if p.scale == "max_abs" else np.float64
    return float(structural_similarity(prepare(a), prepare(b), win_size=p.window, data_range=p.data_range))
