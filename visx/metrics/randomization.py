"""Randomisation check: how similar a map stays when the model's parameters become random, layer after layer.

Cascading model parameter randomisation (Adebayo et al. 2018, arXiv:1810.03292, section 3), from the head to the input. The
last stage reaches every parameter, also those outside layers with `reset_parameters` (positional embeddings, class tokens).
The value is the mean over the stages of Spearman's correlation of absolute maps; a method that ignores the weights has 1. The
signed correlation and SSIM are in the details.

Deviations from the paper: random parameters keep the mean and the standard deviation of the trained ones, so that activations
keep their scale. Layers become random in a few groups (`stages`) in the order of their definition, which bounds the cost.
"""

from __future__ import annotations

from typing import Any

from visx.metrics.contract import Measured, Survey, metric
from visx.params import Field, Params


class RandomizationParams(Params):
    stages: int = Field(5, ge=1, description="groups of layers that become random one after the other")


@metric(
    "randomization",
    kind="set",
    title="Likeness of the map to that of a model with random parameters",
    source="arXiv:1810.03292",
    low=-1,
    high=1,
    better="lower",
    params=RandomizationParams,
)
def randomization(survey: Survey, p: RandomizationParams) -> list[Measured]:
    from visx.metrics.spearman import SpearmanParams, spearman
    from visx.metrics.ssim import SSIMParams, ssim

    figures: list[list[dict[str, Any]]] = [[] for _ in survey.trials]
    signed, absolute = SpearmanParams(), SpearmanParams(absolute=True)
    for stage, maps in survey.randomized(p.stages):
        for i, (trial, random) in enumerate(zip(survey.trials, maps, strict=True)):
            a, b = trial.values, random
            figures[i].append(
                {
                    "stage": stage,
                    "spearman": spearman(a, b, signed),
                    "absolute_spearman": spearman(a, b, absolute),
                    "ssim": ssim(a, b, SSIMParams()),
                }
            )
    return [
        Measured(sum(f["absolute_spearman"] for f in rows) / len(rows), details={"stages": rows}) for rows in figures
    ]
