"""Grid pointing game: in a mosaic of images of different classes, the part of a class's evidence that lies in its own cell.

A mosaic has grid x grid cells, each an image of another class at its usual size. For the class of each cell the value is the
sum of the map's positive values inside the cell over the sum of all positive values. A random map has 1 / cells (Boehle et
al. 2021, arXiv:2104.00032, section 4). So has a map that is positive everywhere (RISE, LeGrad, Recipro-CAM), however well it
points: `details` in the JSON also has `above_mean`, the same part of what exceeds the map's mean, and `maximum_inside`.

Deviations from the paper: 2x2 cells instead of 3x3, and mosaics of images at a probability of 0.9 and above instead of 500
mosaics of a data set's most confident images, because a user's folder is small. The seed shuffles the images, and each is in
one mosaic at most. A model that takes its own input size only, such as most ViTs, is refused, unless `cells` is shrunk: then
each image is made small enough (bilinear, antialiased) that the mosaic has the model's input size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.errors import unsupported, usage
from visx.metrics.contract import Measured, Survey, Trial, metric
from visx.params import Field, Params
from visx.targets.contract import reference_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class GridPointingParams(Params):
    grid: int = Field(2, ge=2, le=8, description="cells along each side")
    confidence: float = Field(0.9, ge=0, le=1, description="least probability of the class on an image of a mosaic")
    mosaics: int = Field(500, ge=1, description="mosaics at most")
    cells: Literal["whole", "shrunk"] = Field(
        "whole", description="images of their usual size, or shrunk so that the mosaic has the model's input size"
    )


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
    values: dict[int, Measured] = {}
    for group in groups:
        mosaic, edges = _mosaic([survey.trials[i] for i in group], p)
        for cell, number in enumerate(group):
            trial = survey.trials[number]
            try:
                result = trial.explain(mosaic)[0]
            except (RuntimeError, AssertionError, ValueError) as error:  # AssertionError: timm's ViTs
                reason = str(error).splitlines()[0][:120]
                raise unsupported(
                    f"the model takes no picture of {tuple(mosaic.shape)}: {reason}",
                    "-p grid_pointing.cells=shrunk",
                ) from None
            (top, bottom), (left, right) = (
                axis[i : i + 2] for axis, i in zip(edges, divmod(cell, p.grid), strict=True)
            )
            own = np.zeros(result.shape, dtype=bool)
            own[top:bottom, left:right] = True
            details = {
                "target": reference_of(trial.objective.identity.json),
                "cell": cell,
                "above_mean": _share(result - result.mean(), own),
                "maximum_inside": bool(own.flat[result.argmax()]) if result.max() > result.min() else False,
            }
            values[number] = Measured(_share(result, own), details=details)
    return [values[number] for number in sorted(values)]


def _share(values: np.ndarray, own: np.ndarray) -> float:
    """The part of the positive values that lies in the own cell, a mask; 0 where nothing is positive."""
    positive = values.clip(min=0)
    total = float(positive.sum())
    return float(positive[own].sum()) / total if total > 0 else 0.0


def _mosaic(trials: list[Trial], p: GridPointingParams) -> tuple[Tensor, tuple[list[int], list[int]]]:
    """A mosaic (1, C, h, w) of one image a cell, row by row, and where its rows and columns of cells begin and end."""
    from torch.nn.functional import interpolate

    cells = range(p.grid + 1)
    if p.cells == "whole":
        height, width = ([i * side for i in cells] for side in trials[0].x.shape[-2:])
    else:
        height, width = ([round(i * side / p.grid) for i in cells] for side in trials[0].x.shape[-2:])
    mosaic = trials[0].x.new_empty((1, trials[0].x.shape[0], height[-1], width[-1]))
    for cell, trial in enumerate(trials):
        row, column = divmod(cell, p.grid)
        place = mosaic[:, :, height[row] : height[row + 1], width[column] : width[column + 1]]
        same = place.shape[-2:] == trial.x.shape[-2:]
        place.copy_(
            trial.x[None] if same else interpolate(trial.x[None], place.shape[-2:], mode="bilinear", antialias=True)
        )
    return mosaic, (height, width)


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
