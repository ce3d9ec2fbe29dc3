"""SmoothGrad: the mean gradient over copies of the input with Gaussian noise.

M = 1/n sum_i G(x + e_i), e_i ~ N(0, sigma^2), sigma = spread * (max(x) - min(x)), x the input after normalisation (Smilkov et
al. 2017, arXiv:1706.03825, section 3). Signed gradients are averaged first, then the channels are reduced to one map. The
noise of copy i depends on the image's seed and i only, not on the batch.

Deviations from the paper: none. Extension: `base` can be another of the methods that its list names, with that method's default
parameters. If the base method gives no gradient by channel, its maps are averaged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import REDUCE_HELP, Reduce, reduce_channels
from visx.params import Field, Params
from visx.seeds import normal

if TYPE_CHECKING:
    from torch import Tensor


class SmoothGradParams(Params):
    samples: int = Field(50, ge=1, description="noisy copies")
    spread: float = Field(0.15, ge=0, le=10, description="noise deviation as a part of the input's range (max - min)")
    base: Literal[
        "backprop",
        "deconvnet",
        "guided_backprop",
        "input_x_gradient",
        "integrated_gradients",
        "gradcam",
        "guided_gradcam",
    ] = Field("backprop", description="the gradient method that is averaged")
    reduce: Reduce = Field("max_abs", description=REDUCE_HELP)

    def extra_needs(self) -> frozenset[str]:
        from visx.methods import get_method

        return get_method(self.base).needs


@method(
    "smoothgrad",
    family="gradient",
    title="SmoothGrad",
    source="arXiv:1706.03825",
    needs={"grad"},
    picture="gradient",
    passes="many",
    params=SmoothGradParams,
)
def smoothgrad(req: Request, p: SmoothGradParams) -> Attribution:
    import torch

    from visx.methods import get_method

    base = get_method(p.base)
    base_params = base.params()
    count = req.objectives.count
    means, has_channels, warnings = [], True, []
    for b, x in enumerate(req.x):
        sigma = p.spread * (x.max() - x.min())
        total: Tensor | None = None
        warned: list[list[str]] = []

        def work(start: int, stop: int, b: int = b, x: Tensor = x, sigma: Tensor = sigma) -> Attribution:
            noise = normal(req.seeds[b], tuple(x.shape), start, stop).to(x)
            copies = x + sigma * noise
            targets = req.targets.some(slice(b, b + 1))
            seeds = tuple(req.seeds[b] + i for i in range(start, stop))
            return base.run(replace(req, x=copies, targets=targets, seeds=seeds, averaged=True), base_params)

        for attribution in req.score.batches(p.samples, work):
            values = attribution.map if attribution.channels is None else attribution.channels
            has_channels = attribution.channels is not None
            total = values.sum(0) if total is None else total + values.sum(0)
            warned = warned or [attribution.warned(0, t) for t in range(count)]
        assert total is not None
        means.append(total / p.samples)
        warnings.append(warned if p.base in ("guided_backprop", "deconvnet") else [[] for _ in warned])
    mean = torch.stack(means)
    if not has_channels:
        return Attribution(mean, warnings=warnings)
    return Attribution(reduce_channels(mean, p.reduce), channels=mean, warnings=warnings)
