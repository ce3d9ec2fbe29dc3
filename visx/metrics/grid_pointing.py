"""Grid pointing game: in a mosaic of images of different classes, the part of a class's evidence that lies in its own cell.

A mosaic has grid x grid cells, each an image of another class at its usual size. For the class of each cell the value is the
sum of the map's positive values inside the cell over the sum of all positive values. A random map has 1 / cells (Boehle et
al. 2021, arXiv:2104.00032, section 4).

Deviations from the paper: 2x2 cells instead of 3x3, and mosaics of images at a probability of 0.9 and above instead of 500
mosaics of a data set's most confident images, because a user's folder is small. The seed shuffles the images, and each is in
one mosaic at most. A model that takes its own input size only is refused.
"""

from __future__ import annotations

from visx.errors import unsupported, usage
from visx.metrics.contract import Measured, Survey, metric
from visx.params import Field, Params
from visx.targets.contract import reference_of


class GridPointingParams(Params):
    grid: int = Field(2, ge=2, le=8, description="cells along each side")
    confidence: float = Field(0.9, ge=0, le=1, description="least probability of the class on an image of a mosaic")
    mosaics: int = Field(500, ge=1, description="mosaics at most")


@metric(
    "grid_pointing",
    kind="set",
    title="Part of a class's positive evidence in its own cell of a mosaic",
    source="arXiv:2104.00032",
    low=0,
    high=1,
    better="higher",
    params=GridPointingParams,
)
def grid_pointing(survey: Survey, p: GridPointingParams) -> list[Measured]:
    import numpy as np
    import torch

    if np.isnan(survey.probabilities).any():
        raise unsupported("grid_pointing asks for probabilities, and this output has none")
    cells = p.grid**2
    groups = _groups(survey, p)
    if not groups:
        confident = {survey.targets[i] for i in _confident(survey, p)}
        raise usage(
            f"grid_pointing needs {cells} images of different classes at a probability of {p.confidence:g} and above; "
            f"there are {len(confident)}",
            "more images, -p grid_pointing.confidence=0.5, or a smaller -p grid_pointing.grid",
        )
    values = []
    for group in groups:
        trials = [survey.trials[i] for i in group]
        height, width = trials[0].values.shape
        rows = [torch.cat([t.x for t in trials[r * p.grid : (r + 1) * p.grid]], 2) for r in range(p.grid)]
        mosaic = torch.cat(rows, 1)[None]
        for cell, trial in enumerate(trials):
            try:
                positive = np.maximum(trial.explain(mosaic)[0], 0)
            except RuntimeError as error:
                reason = str(error).splitlines()[0][:120]
                raise unsupported(
                    f"grid_pointing: the model takes no picture of {tuple(mosaic.shape)}: {reason}"
                ) from None
            top, left = cell // p.grid * height, cell % p.grid * width
            total = float(positive.sum())
            inside = float(positive[top : top + height, left : left + width].sum())
            values.append(
                Measured(
                    inside / total if total > 0 else 0.0,
                    details={"target": reference_of(trial.objective.identity.json), "cell": cell},
                )
            )
    return values


def _confident(survey: Survey, p: GridPointingParams) -> list[int]:
    """The numbers of the trials whose class has at least the probability `p.confidence` on the clean image."""
    return [i for i, probability in enumerate(survey.probabilities) if probability >= p.confidence]


def _groups(survey: Survey, p: GridPointingParams) -> list[list[int]]:
    """The numbers of trials in groups, one a mosaic: distinct classes in each group, no trial in two groups."""
    import numpy as np

    waiting = list(np.random.default_rng(survey.seed).permutation(_confident(survey, p)))
    groups: list[list[int]] = []
    while len(groups) < p.mosaics:
        group: dict[int | str, int] = {}
        for i in waiting:
            if len(group) < p.grid**2:
                group.setdefault(survey.targets[i], int(i))
        if len(group) < p.grid**2:
            break
        groups.append(list(group.values()))
        waiting = [i for i in waiting if i not in group.values()]
    return groups
