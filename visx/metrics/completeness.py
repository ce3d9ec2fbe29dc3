"""Completeness: the relative difference between the sum of a map and the rise of the score over a zero baseline.

|sum M - (S(x) - S(0))| / |S(x) - S(0)|, S the explained score, 0 the zero image after normalisation (the completeness axiom of
Sundararajan et al. 2017, arXiv:1703.01365). Only some methods promise completeness, integrated gradients first among them. For
a coarse map that was upsampled, the sum has no such meaning.
"""

from __future__ import annotations

from visx.metrics.contract import Measured, Trial, metric
from visx.params import Params


@metric(
    "completeness",
    kind="map",
    title="Gap between the map's sum and the score's gain over a zero baseline, relative to the gain",
    source="arXiv:1703.01365",
    low=0,
    high=None,
    better="lower",
)
def completeness(trial: Trial, p: Params) -> Measured:
    import torch

    both = torch.stack([trial.x, torch.zeros_like(trial.x)])
    clean, base = trial.scores(2, lambda start, stop: both[start:stop], trial.kind).tolist()
    gain, total = clean - base, float(trial.values.sum())
    return Measured(abs(total - gain) / max(abs(gain), 1e-12), details={"sum": total, "gain": gain})
