"""Noisy linear imputation: removed pixels become the weighted mean of their neighbours, which hides the removed shape.

Rong et al. 2022, arXiv:2202.00449, section 4.2. Direct neighbours weigh 1/6, diagonal ones 1/12; at the border the weights of
the existing neighbours are scaled up to a sum of 1. Because removed pixels can be neighbours of each other, all of them are the
solution of one sparse linear system. (The noise is added by the caller.)
"""

from __future__ import annotations

import numpy as np

NEIGHBOURS = tuple(
    (dy, dx, 1 / 12 if dy and dx else 1 / 6) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
)


def impute(x: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """A copy of the image `x` (C, H, W) float64 with the pixels `removed` (H, W) bool imputed; not all may be removed."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    if not removed.any():
        return x.copy()
    height, width = removed.shape
    number = np.full(removed.shape, -1)
    rows_at, columns_at = np.nonzero(removed)
    count = len(rows_at)
    number[removed] = np.arange(count)
    weight_sum = np.zeros(count)
    known = np.zeros((count, x.shape[0]))  # each removed pixel's weighted sum of the neighbours that are not removed
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for dy, dx, weight in NEIGHBOURS:
        y, z = rows_at + dy, columns_at + dx
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        weight_sum += weight * inside
        pixel, y, z = np.nonzero(inside)[0], y[inside], z[inside]
        other = number[y, z]
        unknown = other >= 0
        entries.append((pixel[unknown], other[unknown], np.full(int(unknown.sum()), -weight)))
        known[pixel[~unknown]] += weight * x[:, y[~unknown], z[~unknown]].T
    entries.append((np.arange(count), np.arange(count), weight_sum))
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    solved = splu(coo_matrix((value, (row, column)), shape=(count, count)).tocsc()).solve(known)
    filled = x.copy()
    filled[:, removed] = solved.T
    return filled
