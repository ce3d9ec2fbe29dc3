"""What map comparisons share: scaling, ranks with seeded ties, and what a constant map counts as."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def by_largest(values: np.ndarray) -> np.ndarray:
    """A map divided by its largest absolute value, float64 in [-1, 1]; an all-zero map stays zero."""
    values = values.astype(np.float64)
    largest = np.abs(values).max(initial=0.0)
    return values / largest if largest > 0 else values


def order(values: np.ndarray, seed: int) -> np.ndarray:
    """Flat pixel numbers, strongest first. Ties are broken by a shuffle that `seed` decides, never by position: a map
    that is zero almost everywhere must not be read row by row."""
    flat = values.ravel()
    shuffled = np.random.default_rng(seed).permutation(flat.size)
    return shuffled[np.argsort(-flat[shuffled].astype(np.float64), kind="stable")]


def correlation(a: np.ndarray, b: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """`of(a, b)` for arrays that vary. A constant says nothing about another array, so the value is 0 where one of the
    two is constant, and 1 where both are. Equal arrays give exactly 1: rounding must not fail a gate at 1."""
    if np.array_equal(a, b):
        return 1.0
    constant = [bool((v == v.flat[0]).all()) for v in (a, b)]
    return float(all(constant)) if any(constant) else float(of(a.ravel(), b.ravel()))
