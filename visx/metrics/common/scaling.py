"""Scaling, ranking and correlation of maps, with rules for constant maps and pixels of equal value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def by_largest(values: np.ndarray) -> np.ndarray:
    """The map divided by its largest absolute value, float64 in -1..1; an all-zero map stays zero."""
    values = values.astype(np.float64)
    largest = np.abs(values).max(initial=0.0)
    return values / largest if largest > 0 else values


def order(values: np.ndarray, seed: int) -> np.ndarray:
    """The flat numbers of the map's pixels (H * W,), strongest first.

    Pixels of equal value are in a random order that `seed` fixes. In order of position, a map that is zero almost everywhere
    would be read row by row.
    """
    flat = values.ravel()
    shuffled = np.random.default_rng(seed).permutation(flat.size)
    return shuffled[np.argsort(-flat[shuffled].astype(np.float64), kind="stable")]


def correlation(a: np.ndarray, b: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """`of(a, b)`, the correlation of two arrays, flattened, where both vary.

    Constant arrays have no correlation: the value is 0 where one is constant, 1 where both are. Equal arrays give exactly
    1, so that rounding never fails a threshold of 1.
    """
    if np.array_equal(a, b):
        return 1.0
    constant = [bool((v == v.flat[0]).all()) for v in (a, b)]
    return float(all(constant)) if any(constant) else float(of(a.ravel(), b.ravel()))
