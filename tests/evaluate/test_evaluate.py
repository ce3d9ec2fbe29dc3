"""Sums: means, bootstrapped intervals, the best marked, curves."""

from __future__ import annotations

import numpy as np
import pytest

from visx.evaluate.evaluate import Evaluation, Value, bootstrap, curves, summarise
from visx.metrics import get_metric
from visx.metrics.contract import Measured


def values(job: str, metric: str, numbers: list[float], classes: list[int] | None = None) -> list[Value]:
    return [
        Value(job, metric, f"{i}.jpg", classes[i] if classes else 0, Measured(n, [(0.0, n), (1.0, 0.0)]))
        for i, n in enumerate(numbers)
    ]


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    sample = np.random.default_rng(0).normal(2, 1, 400)
    mean, low, high = bootstrap(sample, None, 0)
    assert mean == pytest.approx(sample.mean())
    assert low is not None and high is not None
    assert (high - low) / 2 == pytest.approx(1.96 * sample.std() / 20, rel=0.1)
    assert (low + high) / 2 == pytest.approx(sample.mean(), abs=0.02)
    assert bootstrap(sample, None, 0) == (mean, low, high) != bootstrap(sample, None, 1)
    assert bootstrap(np.array([3.0]), None, 0) == (3.0, None, None)


@pytest.mark.parametrize("by_class", [False, True])
def test_the_interval_is_the_percentiles_of_resampled_means(by_class: bool) -> None:
    random = np.random.default_rng(3)
    values, classes = random.normal(size=12), random.integers(0, 5, 12)

    def mean(index: np.ndarray) -> float:
        chosen = values[index]
        groups = [chosen[classes[index] == c] for c in set(classes[index])] if by_class else [chosen]
        return float(np.mean([group.mean() for group in groups]))

    draw = np.random.default_rng(0)
    means = [mean(draw.integers(0, 12, 12)) for _ in range(2000)]
    expected = (mean(np.arange(12)), *np.quantile(means, [0.025, 0.975]))
    assert bootstrap(values, classes if by_class else None, 0) == pytest.approx(expected, abs=1e-12)


def test_classes_are_averaged_first_where_the_metric_says_so() -> None:
    hits, classes = [1.0, 1.0, 1.0, 0.0], [7, 7, 7, 9]
    (row,) = summarise(values("a", "pointing_game", hits, classes), ["a"], [get_metric("pointing_game")], 0)
    assert row.mean == 0.5
    (row,) = summarise(values("a", "energy", hits, classes), ["a"], [get_metric("energy")], 0)
    assert row.mean == 0.75


def test_the_best_is_marked_in_the_metrics_direction() -> None:
    metrics = [get_metric("insertion"), get_metric("deletion")]
    found = [
        v for m in ("insertion", "deletion") for job, n in (("a", 0.2), ("b", 0.7)) for v in values(job, m, [n, n])
    ]
    best = {(row.job, row.metric): row.best for row in summarise(found, ["a", "b"], metrics, 0)}
    assert best == {
        ("a", "insertion"): False, ("b", "insertion"): True, ("a", "deletion"): True, ("b", "deletion"): False,
    }  # fmt: skip


def test_curves_are_averaged_over_images() -> None:
    metric = get_metric("deletion")
    found = Evaluation([metric], values("a", "deletion", [0.2, 0.4]))
    assert curves(found) == {"deletion": {"a": [(0.0, pytest.approx(0.3)), (1.0, 0.0)]}}
