"""Integrated gradients: the gradient averaged along the straight path from a baseline, times the way travelled.

IG_i = (x_i - x'_i) * integral_0^1 dS(x' + t (x - x'))/dx_i dt (Sundararajan et al. 2017, arXiv:1703.01365, equation 1).
Completeness: IG sums to S(x) - S(x'); the relative gap is reported with every map. The integral is taken by
Gauss-Legendre nodes; `rule=trapezoid` is SAM's (arXiv:2003.08754). On a real network the path is steep near the
baseline, so `tolerance` refines: the path is cut into panels, and since S at a panel's ends tells the exact integral of
the directional derivative over it, the panels that are off are known and halved, the others' gradients kept, until the
gap is met or `max_steps` gradients are spent. `baseline=random` averages over `trials` baselines of uniform pixels.
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

GAP_WARNING = 0.05
PANEL_NODES = 4  # few nodes a panel: on networks of ReLUs the error falls with the panels' width, not with their order


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
    """A piece of the path: the mean gradient's part (T, C, H, W) and the signed error of its directional integral (T,)."""

    start: float
    stop: float
    part: Tensor
    error: Tensor


class _Path:
    """One image's path; gradients and scores of its points stream through the scorer's batches."""

    def __init__(self, req: Request, b: int, ids: Tensor, baseline: Tensor) -> None:
        self.req, self.ids, self.baseline = req, ids, baseline
        self.way = req.x[b] - baseline
        self.steps = 0
        first, last = self.scores([0.0, 1.0])
        self.at_baseline, self.rise = first, last - first

    def points(self, ts: list[float]) -> Tensor:
        return self.baseline + self.way * self.way.new_tensor(ts)[:, None, None, None]

    def scores(self, ts: list[float]) -> Tensor:
        """(n, T) scores at path positions."""
        return self.req.score.scores(len(ts), lambda a, b: self.points(ts[a:b]), self.ids, self.req.kind)

    def weighted(self, ts: list[float], weights: list[float]) -> Tensor:
        """sum_i weights_i * gradient at ts_i: (T, C, H, W)."""
        from visx.targets.classes import Targets

        def work(a: int, b: int) -> Tensor:
            fixed = Targets.fixed(self.ids.expand(b - a, -1))
            grads = self.req.network.input_gradients(self.points(ts[a:b]), fixed, self.req.kind, one_of_many=True).grads
            return (grads * grads.new_tensor(weights[a:b])[:, None, None, None, None]).sum(0)

        self.steps += len(ts)
        return sum(self.req.score.batches(len(ts), work))  # type: ignore[return-value]

    def gap(self, mean_gradient: Tensor) -> Tensor:
        """(T,) completeness gap relative to the rise of the score."""
        total = (mean_gradient * self.way).sum((-3, -2, -1))
        return (total - self.rise).abs() / self.rise.abs().clamp_min(1e-12)

    def refined(self, p: IntegratedGradientsParams) -> Tensor:
        """The mean gradient (T, C, H, W), panels halved where they are off until the gap is within tolerance."""
        count = max(1, min(p.steps, p.max_steps) // PANEL_NODES)
        panels = self.panels([(i / count, (i + 1) / count) for i in range(count)])
        while True:
            allowed = p.tolerance * self.rise.abs()
            off = sum(panel.error for panel in panels)
            affordable = (p.max_steps - self.steps) // (2 * PANEL_NODES)
            if bool((off.abs() <= allowed).all()) or affordable < 1:  # type: ignore[union-attr]
                return sum(panel.part for panel in panels)  # type: ignore[return-value]
            panels.sort(key=lambda panel: float((panel.error.abs() / allowed.clamp_min(1e-12)).max()))
            kept, rest = 0, panels[0].error.abs() * 0
            while kept < len(panels) - 1 and bool((rest + panels[kept].error.abs() <= allowed / 2).all()):
                rest = rest + panels[kept].error.abs()
                kept += 1
            kept = max(kept, len(panels) - affordable)
            halves = [h for q in panels[kept:] for m in [(q.start + q.stop) / 2] for h in ((q.start, m), (m, q.stop))]
            panels = panels[:kept] + self.panels(halves)

    def panels(self, spans: list[tuple[float, float]]) -> list[_Panel]:
        nodes, weights = _gauss_legendre(PANEL_NODES)
        ends = sorted({t for span in spans for t in span})
        score_at = dict(zip(ends, self.scores(ends), strict=True))
        made = []
        for a, b in spans:
            part = self.weighted([a + (b - a) * t for t in nodes], [(b - a) * w for w in weights])
            made.append(_Panel(a, b, part, (part * self.way).sum((-3, -2, -1)) - (score_at[b] - score_at[a])))
        return made


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

    ids = req.score.resolve(req.x, req.targets)
    channels, extras, warnings = [], [], []
    for b in range(len(req.x)):
        total, gaps, steps, starts = None, [], 0, []
        baselines = _baselines(req, b, p)
        for baseline in baselines:
            path = _Path(req, b, ids[b], baseline)
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
        warnings.append([_remarks(g, p) for g in gap])
    stacked = torch.stack(channels)
    return Attribution(reduce_channels(stacked, p.reduce), stacked, extras=extras, warnings=warnings)


def _remarks(gap: float, p: IntegratedGradientsParams) -> list[str]:
    if p.tolerance and gap > p.tolerance:
        return [
            f"completeness gap {gap:.1%} after {p.max_steps} steps, tolerance {p.tolerance:.1%}: raise -p max_steps"
        ]
    if gap > GAP_WARNING:
        return [f"completeness gap {gap:.1%}: the map does not add up to the score; try -p tolerance=0.01"]
    return []


def _baselines(req: Request, b: int, p: IntegratedGradientsParams) -> list[Any]:
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
    """Positions in 0..1 and weights that add up to 1. SAM's trapezoid has `steps` intervals, so steps + 1 gradients."""
    if p.rule == "gauss_legendre":
        return _gauss_legendre(p.steps)
    inner = [1 / p.steps] * (p.steps - 1)
    return [i / p.steps for i in range(p.steps + 1)], [0.5 / p.steps, *inner, 0.5 / p.steps]


def _gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
