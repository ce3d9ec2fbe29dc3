"""LIME's linear model: the weighted ridge regression, its standard errors, and what is shrunk by them."""

from __future__ import annotations

import numpy as np
import pytest

from visx.methods.lime import LimeParams, Surrogate, fit, random_visibility, standard_errors


def ridge(
    z: np.ndarray, y: np.ndarray, alpha: float, width: float, kept: list[int] | None = None
) -> tuple[np.ndarray, float, float]:
    """The paper's weighted ridge regression by its normal equations: weights, intercept, weighted R squared.

    With `kept`, of these superpixels alone; how near a sample is to the whole image is still counted over all."""
    ones = np.ones(z.shape[1])
    norms = np.linalg.norm(z, axis=1) * np.linalg.norm(ones)
    cosine = np.divide(z @ ones, norms, out=np.zeros(len(z)), where=norms > 0)
    weight = np.sqrt(np.exp(-((1 - cosine) ** 2) / width**2))
    z = z if kept is None else z[:, kept]
    centre, level = weight @ z / weight.sum(), weight @ y / weight.sum()
    a = (z - centre).T @ ((z - centre) * weight[:, None]) + alpha * np.eye(z.shape[1])
    w = np.linalg.solve(a, (z - centre).T @ (weight * (y - level)))
    intercept = level - centre @ w
    rest = weight @ (y - z @ w - intercept) ** 2
    return w, intercept, 1 - rest / (weight @ (y - level) ** 2)


@pytest.mark.parametrize("alpha,width", [(1.0, 0.25), (5.0, 0.25), (1.0, 0.6)])
def test_the_fit_is_the_weighted_ridge_regression(alpha, width):
    draw = np.random.default_rng(0)
    z = draw.random((40, 8)) < 0.5
    z[0], z[1] = True, False
    y = np.tanh(z @ draw.normal(size=8)) + 0.1 * draw.normal(size=40)
    found = fit(z, y, LimeParams(alpha=alpha, kernel_width=width, features=None))
    w, intercept, r2 = ridge(z.astype(float), y, alpha, width)
    np.testing.assert_allclose(found.weights, w, atol=1e-12)
    assert (found.intercept, found.r2) == (pytest.approx(intercept), pytest.approx(r2))
    assert found.local == pytest.approx(intercept + w.sum())


def test_features_keeps_the_largest_weights_and_fits_them_again():
    draw = np.random.default_rng(0)
    z = draw.random((60, 8)) < 0.5
    y = z @ np.array([3.0, -2.5, 0.1, 0.2, 2.0, 0, 0, 0.3]) + 0.1 * draw.normal(size=60)
    found = fit(z, y, LimeParams(features=3, alpha=1.0))
    w, intercept, r2 = ridge(z.astype(float), y, 1.0, 0.25, [0, 1, 4])
    np.testing.assert_allclose(found.weights, [w[0], w[1], 0, 0, w[2], 0, 0, 0], atol=1e-12)
    assert found.r2 == pytest.approx(r2) and found.local == pytest.approx(intercept + w.sum())


def test_standard_errors_are_the_spread_of_the_weights_over_samples():
    draw = np.random.default_rng(0)
    truth = np.array([4.0, 0, 0, -3, 0, 0])
    fits, errors = [], []
    for _ in range(300):
        z = draw.random((150, 6)) < 0.5
        noise = draw.normal(size=150) * np.where(z[:, 0], 1.0, 0.2)  # more of it where the first is on
        y = z @ truth + noise
        fits.append(fit(z, y, LimeParams()))
        distance = 1 - np.sqrt(z.mean(1))
        weight = np.exp(-((distance / 0.25) ** 2) / 2)
        errors.append(standard_errors(z.astype(float), y - fits[-1].intercept - z @ fits[-1].weights, weight, 1.0))
    spread = np.std([found.weights for found in fits], axis=0)
    np.testing.assert_allclose(np.mean(errors, axis=0), spread, rtol=0.12)
    typical = np.sqrt(np.square(spread).mean())
    assert np.mean([found.error for found in fits]) == pytest.approx(typical, rel=0.05)
    assert all(found.significant() >= 2 for found in fits)  # the two that matter, and of the others
    assert np.mean([found.significant() - 2 for found in fits]) < 0.1  # hardly ever one


def test_weights_within_their_errors_shrink_and_keep_their_order():
    found = Surrogate(np.array([1.0, -1.0, 0.5, -0.25, 0.0]), 0.25, 0.0, 0.0, 1.0)
    np.testing.assert_allclose(found.shrunk(4.0), [1.0, -1.0, 0.5 / 8, -0.25 / 64, 0.0])
    assert found.significant() == 2
    assert (found.shrunk(0) == found.weights).all()
    unknown = Surrogate(found.weights, np.nan, 0.0, 0.0, 1.0)  # too few samples to tell errors from
    assert (unknown.shrunk(4.0) == found.weights).all() and unknown.significant() == 4


def test_the_lime_package_fits_the_same_samples_alike_and_the_default_map_ranks_as_it_does():
    base = pytest.importorskip("lime.lime_base")
    from scipy.stats import rankdata

    draw = np.random.default_rng(0)
    z = random_visibility(7, 300, 20).numpy()
    y = np.tanh(z @ draw.normal(size=20) / 3) + 0.1 * draw.normal(size=300)
    distances = 1 - np.sqrt(z.mean(1))  # cosine
    peer = base.LimeBase(lambda d: np.sqrt(np.exp(-((d / 0.25) ** 2))))
    found = dict(peer.explain_instance_with_data(z.astype(float), y[:, None], distances, 0, 1000)[1])
    weights = np.array([found[i] for i in range(20)])
    fitted, p = fit(z, y, LimeParams()), LimeParams()
    np.testing.assert_allclose(fitted.weights, weights, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(rankdata(fitted.shrunk(p.significance)), rankdata(weights))
