"""The metric contract: what a metric gets, what it returns, and how it is declared.

A metric is one function in one file, `visx/metrics/NAME.py`, declared by `@metric` and listed in `visx.metrics.names`.
A metric's module imports torch and scikit-image inside its function only, so that listing metrics stays fast.

There are five kinds, by what the function takes:
- `pair`: `run(a, b, params) -> float` compares two maps.
- `box`: `run(values, boxes, seed, params) -> Measured` compares one map with annotated boxes.
- `alone`: `run(values, params) -> Measured` looks at one map and at nothing else.
- `map`: `run(trial, params) -> Measured` asks the model about one map.
- `set`: `run(survey, params) -> list[Measured]` asks the model about one method's maps of many images.

Every map is (H, W) float64, raw, of the model's input size: a coarse map is upsampled. A map may be zero everywhere, and
negative where its method is signed. A metric's docstring says what its value is then; `VisxError` where it has none.
Maps that explain a unit of a layer are refused before a metric of kind `map` or `set` runs, because a trial's objective is a
class; the other kinds take them. Values of kind `map` are kept in `measured.jsonl`; the other kinds are quick or draw on many
maps, and are measured again in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from visx.errors import unsupported
from visx.metrics.names import Kind, of_values
from visx.params import Params

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from visx.network.outputs import ScoreKind
    from visx.network.scorer import Scorer
    from visx.targets.contract import Objective, Objectives

Box = tuple[float, float, float, float]  # (left, top, right, bottom) of the region's edges, in pixels of the map


@dataclass(frozen=True)
class Trial:
    """One map and the model that it speaks about.

    `x` is (C, H, W), normalised, on the model's device; `values` (H, W) float64, raw; `objectives` what it explains, one of one image; `seed`
    the image's random stream; `kind` the scalar that was explained; `score` scores perturbed copies; `explain` maps
    (N, C, h, w) to the method's maps (N, h, w) float64 for the same objective and seed.
    """

    x: Tensor
    values: np.ndarray
    objectives: Objectives
    seed: int
    kind: ScoreKind
    score: Scorer
    explain: Callable[[Tensor], np.ndarray]

    @property
    def objective(self) -> Objective:
        """What the map explains."""
        return self.objectives.rows[0][0]

    def scores(self, count: int, copies: Callable[[int, int], Tensor], kind: ScoreKind) -> np.ndarray:
        """The target's score (count,) float64 of copies `copies(start, stop)` -> (n, C, H, W), in bounded batches."""
        scores = partial(self.objectives.scores, kind=kind)
        return self.score.scores(count, copies, scores)[:, 0].double().cpu().numpy()

    def probabilities(self, count: int, copies: Callable[[int, int], Tensor]) -> np.ndarray:
        """The target's probability (count,) of copies, as `scores`. Raises `VisxError` (exit 4) where the output has none."""
        if not self.objectives.outputs.has_probabilities:
            raise unsupported(
                f"it measures a probability, and {self.objectives.outputs} have none",
                f"{of_values()} measure values",
            )
        return self.scores(count, copies, "prob")


@dataclass(frozen=True)
class Survey:
    """A method over many images.

    `trials` holds one a map, loaded when it is asked for; `targets` and `probabilities` each map's class and that class's
    probability on the clean image (NaN where there is none). `randomized(count)` yields (stage's name, maps (H, W) of all trials) from a copy of
    the model whose parameters are random from the head up to that stage, in about `count` stages, the last one reaching
    every parameter.
    """

    trials: Sequence[Trial]
    targets: Sequence[int | str]
    probabilities: Sequence[float]
    seed: int
    randomized: Callable[[int], Iterator[tuple[str, Iterable[np.ndarray]]]]


@dataclass(frozen=True)
class Measured:
    """One value; `curve` holds (x, y) pairs where there is a curve, `details` further figures for the JSON."""

    value: float
    curve: list[tuple[float, float]] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A registered metric: its declaration and the function that computes it.

    `low` and `high` bound its values (None: unbounded); `better` is the direction in which maps are better, or more
    alike. `average` says how images are averaged: all alike, or within each class first.
    """

    name: str
    kind: Kind
    title: str
    source: str
    low: float | None
    high: float | None
    better: Literal["higher", "lower"]
    average: Literal["image", "class"]
    params: type[Params]
    run: Callable[..., Any] = field(repr=False)


REGISTRY: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    kind: Kind,
    title: str,
    source: str,
    low: float | None,
    high: float | None,
    better: Literal["higher", "lower"],
    average: Literal["image", "class"] = "image",
    params: type[Params] = Params,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a metric; the fields are those of `Metric`."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        REGISTRY[name] = Metric(name, kind, title, source, low, high, better, average, params, run)
        return run

    return register
