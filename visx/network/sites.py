"""One attention over the picture's tokens: how its rows lie in windows and heads, and its keys in the picture.

`visx.network.attention.attentions` finds the sites of a network; a method makes maps of a site's weights by `Site.maps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAME = 1e-4  # within which two places are one
NO_GRID = "its keys form no grid of the picture"


@dataclass(frozen=True, eq=False)
class Site:
    """One attention over tokens, for one picture.

    `module` is the path of the innermost module that it runs in, `block` that of the outermost one with no other attention
    in it (empty where there is none). Its weights have R rows, each Nq queries by Nk keys. `order` (W, H) has the numbers
    of the rows by windows and heads: the heads of a window see the same keys. `keys` (W, Nk) and `queries` (W, Nq) are
    places (complex, NaN for class tokens and padding; visx/network/places.py). `cells` (W, Nk) are the keys' cells of a
    `grid` of (rows, columns), counted by rows, -1 for none.
    Where there is a single window, `tokens` (N,) are the places of one sequence that holds all queries and keys. A query
    that is no key (the latent of an attention pooling) comes first in it, then the keys. `asks` (Nq,) are the numbers of the
    queries in it, `offset` is the number of the first key. `tokens` is None where there is no such sequence.
    """

    module: str
    block: str
    order: Tensor
    keys: Tensor
    queries: Tensor
    cells: Tensor
    grid: tuple[int, int]
    tokens: Tensor | None
    asks: Tensor
    offset: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, Nq, Nk) for one picture."""
        return self.order.numel(), self.queries.shape[1], self.keys.shape[1]

    @property
    def pools(self) -> bool:
        """Whether class tokens, or a latent of an attention pooling, ask alone."""
        return self.shape[1] != self.shape[2] and bool(self.queries.isnan().all())

    def windows(self, rows: Tensor) -> Tensor:
        """(B * R, Nq, Nk) -> (B, W, H, Nq, Nk)."""
        apart = rows.unflatten(0, (-1, self.order.numel()))
        flat = self.order.flatten()
        if not torch.equal(flat, torch.arange(len(flat))):
            apart = apart[:, flat.to(rows.device)]
        return apart.unflatten(1, tuple(self.order.shape))

    def maps(self, values: Tensor) -> Tensor:
        """A value for each key (..., W, Nk) -> maps (..., h, w): the mean of the keys of a cell; 0 where there is none."""
        cells = self.cells.flatten().to(values.device)
        there = (cells >= 0).nonzero().flatten()
        flat, cells = values.flatten(-2)[..., there], cells[there]
        height, width = self.grid
        total = flat.new_zeros(*flat.shape[:-1], height * width).index_add_(-1, cells, flat)
        count = flat.new_zeros(height * width).index_add_(0, cells, flat.new_ones(len(cells)))
        return (total / count.clamp_min(1)).unflatten(-1, (height, width))

    def square(self, weights: Tensor) -> Tensor:
        """Weights (..., Nq, Nk) of a single window as (..., N, N) over its sequence of tokens: zero in the rows of tokens
        that ask nothing."""
        assert self.tokens is not None
        count = len(self.tokens)
        if weights.shape[-2:] == (count, count):
            return weights
        result = weights.new_zeros(*weights.shape[:-2], count, count)
        result[..., self.asks.to(weights.device), self.offset :] = weights
        return result


def placed(module: str, block: str, keys: Tensor, count: int, queries: Tensor | None) -> Site | str:
    """The site whose rows have keys at these places (R, Nk), and `count` queries at those (R, Nq), None where they have
    none; or the reason why it is no attention over tokens."""
    if queries is None or queries.shape[0] != len(keys):
        queries = torch.full((len(keys), count), complex("nan"), dtype=keys.dtype)
    gridded = _cells(keys)
    if gridded is None:
        return NO_GRID
    cells, grid = gridded
    _, window, sizes = cells.unique(dim=0, return_inverse=True, return_counts=True)
    if len(set(sizes.tolist())) != 1:
        return "its windows have different numbers of heads"
    order = window.argsort(stable=True).unflatten(0, (len(sizes), -1))
    order = order[order[:, 0].argsort()]
    keys, queries, cells = keys[order[:, 0]], queries[order[:, 0]], cells[order[:, 0]]
    tokens, asks, offset = _sequence(keys, queries)
    return Site(module, block, order, keys, queries, cells, grid, tokens, asks, offset)


def _cells(keys: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
    """The cells of places on the grid that they form together, -1 for no place; None where they form none."""
    there = ~keys.isnan()
    rows, columns = _levels(keys.imag[there]), _levels(keys.real[there])
    row = torch.searchsorted(rows, keys.imag.nan_to_num().contiguous(), right=True) - 1
    column = torch.searchsorted(columns, keys.real.nan_to_num().contiguous(), right=True) - 1
    cells = torch.where(there, row * len(columns) + column, -1)
    count = len(rows) * len(columns)
    return None if count < 2 or len(cells[there].unique()) != count else (cells, (len(rows), len(columns)))


def _levels(values: Tensor) -> Tensor:
    """The different values in order, each a little less than it is; what differs by rounding is one value."""
    ordered = values.unique()
    apart = torch.ones_like(ordered, dtype=torch.bool)
    apart[1:] = ordered.diff() > SAME
    return ordered[apart] - SAME / 2


def _sequence(keys: Tensor, queries: Tensor) -> tuple[Tensor | None, Tensor, int]:
    """`tokens`, `asks` and `offset` of a site."""
    count = queries.shape[1]
    every = torch.arange(count)
    if len(keys) != 1:
        return None, every, 0
    tokens, prefix = keys[0], keys[0].isnan().nonzero().flatten()
    if count == len(tokens):
        elsewhere = (queries[0] - tokens).abs() > SAME  # never where one of them has no place
        return None if elsewhere.any() else tokens, every, 0
    if not queries.isnan().all():
        return None, every, 0
    if count == len(prefix):  # class attention: the class tokens alone ask
        return tokens, prefix, 0
    return torch.cat([queries[0], tokens]), every, count
