"""Integrated gradients: the mean gradient along the straight path from a baseline to the input, times input minus baseline.

IG_i = (x_i - x'_i) * integral_0^1 dS(x' + t (x - x'))/dx_i dt, x' the baseline (Sundararajan et al. 2017, arXiv:1703.01365,
equation 1). Completeness: the values of IG sum to S(x) - S(x'). The relative error of that sum, the completeness gap, is
reported with every map.

Deviations from the paper:
- Gauss-Legendre nodes instead of a Riemann sum. `rule=trapezoid` is the rule of SAM (arXiv:2003.08754).
- `tolerance` above 0 refines the sum, because the gradient changes fast near the baseline. The path is cut into panels. The
  scores at both ends of a panel give the exact integral of the directional derivative over it, and so the error of that
  panel. Panels with large errors are halved, the gradients of the others are kept, until the gap is within the tolerance or
  `max_steps` gradients are spent.
- `baseline=random` averages over `trials` baselines of uniformly random pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import REDUCE_HELP, Reduce, reduce_channels
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

GAP_WARNING = 0.05  # a completeness gap above this part of the score's rise is warned about
PANEL_NODES = 4  # few: in a network of ReLUs narrower panels lower the error, more nodes in a panel do not


class IntegratedGradientsParams(Params):
    steps: int = Field(
        50, ge=1, le=4096, description="gradients along the path (to begin with, where tolerance refines)"
    )
    rule: Literal["gauss_legendre", "trapezoid"] = Field("gauss_legendre", description="quadrature rule")
    baseline: Literal["zero", "random", "grey", "black", "blur"] = Field(
        "zero",
        description="start of the path: zero (normalised 0), random pixels, grey (0.5), black, or the blurred image",
    )
    trials: int = Field(10, ge=1, description="random baselines that are averaged (baseline=random)")
    tolerance: float = Field(
        0.0, ge=0, lt=1, description="refine until the completeness gap is below this part; 0 does not"
    )
    max_steps: int = Field(2000, ge=PANEL_NODES, description="most gradients a path, with tolerance")
    reduce: Reduce = Field("sum", description=REDUCE_HELP)

    @field_validator("tolerance")
    @classmethod
    def _panels_are_gauss_legendre(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("rule") == "trapezoid":
            raise ValueError("refining works in Gauss-Legendre panels: it does not go with rule=trapezoid")
        return value


@dataclass
class _Panel:
    """The piece of a path from position `start` to `stop` (both in 0..1).

    `part` (T, C, H, W) is what the piece adds to the path's mean gradient. `error` (T,) is the integral of the directional
    derivative by quadrature minus the exact one.
    """

    start: float
    stop: float
    part: Tensor
    error: Tensor


class _Path:
    """The path from a baseline (C, H, W) to image `b`, for its T objectives.

    A position t in 0..1 is the point baseline + t * way. Scores and gradients of many points are computed in batches of
    bounded size. `steps` counts the gradients so far, `rise` (T,) is the score at the image minus that at the baseline.
    """

    def __init__(self, req: Request, b: int, baseline: Tensor) -> None:
        self.req, self.of_image, self.baseline = req, req.scalars_of(b), baseline
        self.way = req.x[b] - baseline
        self.steps = 0
        first, last = self.scores([0.0, 1.0])
        self.at_baseline, self.rise = first, last - first

    def points(self, ts: list[float]) -> Tensor:
        """(n, C, H, W): the points at positions `ts`."""
        return self.baseline + self.way * self.way.new_tensor(ts)[:, None, None, None]

    def scores(self, ts: list[float]) -> Tensor:
        """(n, T): the scores at positions `ts`."""
        return self.req.score.scores(len(ts), lambda a, b: self.points(ts[a:b]), self.of_image)

    def weighted(self, ts: list[float], weights: list[float]) -> Tensor:
        """(T, C, H, W): the sum of the gradients at positions `ts`, each times its weight."""

        def work(a: int, b: int) -> Tensor:
            grads = self.req.network.input_gradients(self.points(ts[a:b]), self.of_image, one_of_many=True).grads
            return (grads * grads.new_tensor(weights[a:b])[:, None, None, None, None]).sum(0)

        self.steps += len(ts)
        return sum(self.req.score.batches(len(ts), work))  # type: ignore[return-value]

    def gap(self, mean_gradient: Tensor) -> Tensor:
        """(T,): |sum of the map - rise| / |rise|, the completeness gap."""
        total = (mean_gradient * self.way).sum((-3, -2, -1))
        return (total - self.rise).abs() / self.rise.abs().clamp_min(1e-12)

    def refined(self, p: IntegratedGradientsParams) -> Tensor:
        """(T, C, H, W): the mean gradient, with the panels of large error halved until the gap is within `p.tolerance`."""
        count = max(1, min(p.steps, p.max_steps) // PANEL_NODES)
        panels = self.panels([(i / count, (i + 1) / count) for i in range(count)])
        while True:
            allowed = p.tolerance * self.rise.abs()
            error = sum(panel.error for panel in panels)
            affordable = (p.max_steps - self.steps) // (2 * PANEL_NODES)
            if bool((error.abs() <= allowed).all()) or affordable < 1:  # type: ignore[union-attr]
                return sum(panel.part for panel in panels)  # type: ignore[return-value]
            panels.sort(key=lambda panel: float((panel.error.abs() / allowed.clamp_min(1e-12)).max()))
            kept, kept_error = (
                0,
                panels[0].error.abs() * 0,
            )  # the panels of least error may make half of the allowed one
            while kept < len(panels) - 1 and bool((kept_error + panels[kept].error.abs() <= allowed / 2).all()):
                kept_error = kept_error + panels[kept].error.abs()
                kept += 1
            kept = max(kept, len(panels) - affordable)
            middles = [(panel.start + panel.stop) / 2 for panel in panels[kept:]]
            halves = [
                half
                for panel, middle in zip(panels[kept:], middles, strict=True)
                for half in ((panel.start, middle), (middle, panel.stop))
            ]
            panels = panels[:kept] + self.panels(halves)

    def panels(self, spans: list[tuple[float, float]]) -> list[_Panel]:
        """The panels from `start` to `stop` of each span, their gradients computed."""
        nodes, weights = _gauss_legendre(PANEL_NODES)
        ends = sorted({t for span in spans for t in span})
        score_at = dict(zip(ends, self.scores(ends), strict=True))
        panels = []
        for a, b in spans:
            part = self.weighted([a + (b - a) * t for t in nodes], [(b - a) * w for w in weights])
            panels.append(_Panel(a, b, part, (part * self.way).sum((-3, -2, -1)) - (score_at[b] - score_at[a])))
        return panels


@method(
    "integrated_gradients",
    family="gradient",
    title="Integrated gradients",
    source="arXiv:1703.01365",
    needs={"grad"},
    signed=True,
    passes="many",
    params=IntegratedGradientsParams,
)
def integrated_gradients(req: Request, p: IntegratedGradientsParams) -> Attribution:
    import torch

    channels, extras, warnings = [], [], []
    for b in range(len(req.x)):
        total, gaps, steps, starts = None, [], 0, []
        baselines = _baselines(req, b, p)
        for baseline in baselines:
            path = _Path(req, b, baseline)
            gradient = path.refined(p) if p.tolerance else path.weighted(*_rule(p))
            total = gradient * path.way if total is None else total + gradient * path.way
            gaps.append(path.gap(gradient))
            starts.append(path.at_baseline)
            steps = max(steps, path.steps)
        assert total is not None
        channels.append(total / len(baselines))
        gap, start = torch.stack(gaps).mean(0).tolist(), torch.stack(starts).mean(0).tolist()
        extras.append(
            [{"completeness_gap": g, "steps": steps, "baseline_score": s} for g, s in zip(gap, start, strict=True)]
        )
        warnings.append([_gap_warnings(g, p) for g in gap])
    stacked = torch.stack(channels)
    return Attribution(reduce_channels(stacked, p.reduce), stacked, extras=extras, warnings=warnings)


def _gap_warnings(gap: float, p: IntegratedGradientsParams) -> list[str]:
    """A warning where the completeness gap is above the tolerance, or above 5 % without one."""
    if p.tolerance and gap > p.tolerance:
        return [
            f"completeness gap {gap:.1%} after {p.max_steps} steps, tolerance {p.tolerance:.1%}: raise -p max_steps"
        ]
    if gap > GAP_WARNING:
        return [f"completeness gap {gap:.1%}: the map does not add up to the score; try -p tolerance=0.01"]
    return []


def _baselines(req: Request, b: int, p: IntegratedGradientsParams) -> list[Any]:
    """The baselines of image `b`, normalised, each (C, H, W): one, or `trials` random ones."""
    import torch

    x = req.x[b]
    if p.baseline == "zero":
        return [torch.zeros_like(x)]
    if p.baseline == "grey":
        return [req.normalised(0.5).expand_as(x)]
    if p.baseline == "black":
        return [req.normalised(0.0).expand_as(x)]
    if p.baseline == "blur":
        from visx.ops.blur import gaussian_blur

        return [gaussian_blur(x[None], 10.0)[0]]
    draws = (
        torch.rand(x.shape, generator=generator(req.seeds[b], "baseline", i), dtype=torch.float32)
        for i in range(p.trials)
    )
    return [req.normalised(draw.to(x)) for draw in draws]


def _rule(p: IntegratedGradientsParams) -> tuple[list[float], list[float]]:
    """The positions in 0..1 and the weights of the quadrature rule; the weights sum to 1.

    SAM's trapezoid rule has `steps` intervals, and so steps + 1 positions.
    """
    if p.rule == "gauss_legendre":
        return _gauss_legendre(p.steps)
    inner = [1 / p.steps] * (p.steps - 1)
    return [i / p.steps for i in range(p.steps + 1)], [0.5 / p.steps, *inner, 0.5 / p.steps]


def _gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """The `count` positions in 0..1 of Gauss-Legendre quadrature and their weights, which sum to 1."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
