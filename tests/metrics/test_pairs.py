"""Metrics between two maps: oracles and definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from visx.errors import VisxError
from visx.metrics import all_metrics, get_metric
from visx.metrics.common.scaling import order
from visx.metrics.contract import Metric

PAIRS = [m for m in all_metrics() if m.kind == "pair"]


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.normal(size=(64, 48)), random.normal(size=(64, 48))


def value(name: str, a: np.ndarray, b: np.ndarray, **params: object) -> float:
    metric = get_metric(name)
    return float(metric.run(a, b, metric.params(**params)))


@pytest.mark.parametrize("metric", PAIRS, ids=lambda m: m.name)
def test_identical_maps_give_one(metric: Metric, maps: tuple[np.ndarray, np.ndarray]) -> None:
    for same in (maps[0], np.zeros((64, 48)), np.full((64, 48), 2.5)):
        assert metric.run(same, same.copy(), metric.params()) == 1.0


@pytest.mark.parametrize("metric", PAIRS, ids=lambda m: m.name)
def test_other_maps_are_less_alike_and_order_does_not_matter(
    metric: Metric, maps: tuple[np.ndarray, np.ndarray]
) -> None:
    a, b = maps
    found = metric.run(a, b, metric.params())
    assert found < 0.7
    assert metric.low <= found <= metric.high
    assert found == pytest.approx(metric.run(b, a, metric.params()), abs=1e-12)


@pytest.mark.parametrize("metric", PAIRS, ids=lambda m: m.name)
def test_scale_does_not_matter(metric: Metric, maps: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = maps
    found = metric.run(a, b, metric.params())
    assert metric.run(a * 1e-9, b * 1e4, metric.params()) == pytest.approx(found, abs=1e-9)


def test_a_monotone_transform_leaves_spearman_at_one(maps: tuple[np.ndarray, np.ndarray]) -> None:
    a, _ = maps
    assert value("spearman", a, np.exp(a)) == pytest.approx(1, abs=1e-12)
    assert value("pearson", a, np.exp(a)) < 0.9
    assert value("spearman", a, -a) == pytest.approx(-1, abs=1e-12)
    assert value("spearman", a, -a, absolute=True) == 1.0


def test_pearson_is_the_covariance_over_the_deviations(maps: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = maps[0], maps[0] + 0.7 * maps[1]
    expected = ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
    assert value("pearson", a, b) == pytest.approx(expected, abs=1e-12)
    assert value("pearson", a, 3 - 2 * b) == pytest.approx(-expected, abs=1e-12)


def test_spearman_is_pearson_of_ranks_with_ties_shared() -> None:
    a, b = np.array([[1.0, 2.0, 2.0, 9.0]]), np.array([[0.0, 5.0, 3.0, 4.0]])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([1, 4, 2, 3])
    assert value("spearman", a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_one_constant_map_is_unlike_any_other(maps: tuple[np.ndarray, np.ndarray]) -> None:
    for name in ("spearman", "pearson", "hog"):
        assert value(name, maps[0], np.zeros_like(maps[0])) == 0.0


def naive_ssim(a: np.ndarray, b: np.ndarray, window: int, span: float) -> float:
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            u, v = a[i : i + window, j : j + window].ravel(), b[i : i + window, j : j + window].ravel()
            (uu, uv), (_, vv) = np.cov(u, v)
            mu, mv = u.mean(), v.mean()
            values.append((2 * mu * mv + c1) * (2 * uv + c2) / ((mu**2 + mv**2 + c1) * (uu + vv + c2)))
    return float(np.mean(values))


def test_ssim_as_sam_has_it(maps: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = maps[0][:20, :20], maps[0][:20, :20] + 0.5 * maps[1][:20, :20]
    scaled = a / np.abs(a).max(), b / np.abs(b).max()
    assert value("ssim", a, b) == pytest.approx(naive_ssim(*scaled, 5, 2.0), abs=1e-9)
    unit = np.abs(scaled[0]), np.abs(scaled[1])
    found = value("ssim", *unit, scale="none", data_range=1)
    assert found == pytest.approx(naive_ssim(*unit, 5, 1.0), abs=1e-9)


def test_hog_is_pearson_of_hog_features_with_cells_of_16(maps: tuple[np.ndarray, np.ndarray]) -> None:
    from skimage.feature import hog

    a, b = maps
    first, second = (hog(m / np.abs(m).max(), pixels_per_cell=(16, 16)) for m in maps)
    assert value("hog", a, b) == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-9)


def test_top_k_counts_shared_pixels() -> None:
    a, b = np.zeros((10, 10)), np.zeros((10, 10))
    a[0, :], b[0, :4], b[5, :6] = 1, 1, 1
    assert value("top_k", a, b, part=0.1) == pytest.approx(0.4)


def test_iou_of_two_rectangles() -> None:
    a, b = np.zeros((10, 10)), np.full((10, 10), -5.0)
    a[2:6, 2:6], b[4:8, 2:6] = 1, 3
    assert value("iou", a, b) == pytest.approx(8 / 24)
    a[0, 0] = 0.4
    assert value("iou", a, b) == pytest.approx(8 / 24)
    assert value("iou", a, b, threshold=0.3) == pytest.approx(8 / 25)


def test_ties_are_shuffled_by_the_seed_and_not_by_position() -> None:
    values = np.zeros((20, 20))
    values[10, 10] = 1
    first, again, other = order(values, 1), order(values, 1), order(values, 2)
    assert first[0] == other[0] == 210
    assert (first == again).all()
    assert (first != other).any()
    assert sorted(first) == list(range(400))
    assert abs(np.corrcoef(np.arange(400), first)[0, 1]) < 0.3


@pytest.mark.parametrize(("name", "shape"), [("ssim", (4, 40)), ("hog", (40, 64))])
def test_maps_too_small_for_a_window_are_a_usage_error(name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(VisxError, match="does not fit maps") as caught:
        value(name, np.zeros(shape), np.ones(shape))
    assert caught.value.code == 2
