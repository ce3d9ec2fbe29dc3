"""Feature grids: a layer's output as maps (B, K, h, w), whatever its layout, and gradients in the same form.

How an output is to be read is not guessed from its shape: a recorded pass (visx/network/trace.py) knows for every value
which place of the picture it stands for. An output is a grid where those places form complete rows and columns, and
where they come in order; class, distillation and register tokens, and borders of padding, stand for no place and are left
out. Everything else is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from visx.errors import unsupported
from visx.network.places import varies

SPATIAL = "`visx layers MODEL --spatial` lists the layers that can be explained"


@dataclass(frozen=True)
class FeatureGrid:
    """How one layer's output is read as a batch of maps (B, K, h, w).

    `axes` are the output's axes in the order batch, features, places; `features` and `places` the lengths of the latter
    two kinds. `cells` are the places that count, as indices into all of them by rows, None where all do in their order.
    `shape` is (K, h, w), `layout` names the layout for people.
    """

    axes: tuple[int, ...]
    features: tuple[int, ...]
    places: tuple[int, ...]
    cells: Tensor | None
    shape: tuple[int, int, int]
    layout: str

    @property
    def single(self) -> bool:
        """Whether there is one cell only, which stands for the whole picture."""
        return self.shape[1] * self.shape[2] == 1

    def form(self, batch: int) -> tuple[int, ...]:
        """The output's shape for so many images."""
        sizes = dict(zip(self.axes, (batch, *self.features, *self.places), strict=True))
        return tuple(sizes[axis] for axis in range(len(sizes)))

    def maps(self, output: Tensor) -> Tensor:
        """A layer's output, or a gradient with respect to it, as (B, K, h, w)."""
        if self.axes == (0, 1, 2, 3) and self.cells is None:
            return output
        ordered = output.permute(self.axes).flatten(1 + len(self.features)).flatten(1, len(self.features))
        if self.cells is not None:
            ordered = ordered.index_select(2, self.cells.to(output.device))
        return ordered.unflatten(2, self.shape[1:])

    def output(self, maps: Tensor, like: Tensor) -> Tensor:
        """The inverse of `maps`: (B, K, h, w) in the form of the output `like`, zero where no cell is."""
        flat = maps.flatten(2)
        if self.cells is not None:
            every = flat.new_zeros(*flat.shape[:2], math.prod(self.places))
            flat = every.index_copy(2, self.cells.to(flat.device), flat)
        ordered = flat.reshape(len(maps), *self.features, *self.places)
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return ordered.permute(back).to(like.dtype)

    def inserted(self, maps: Tensor, output: Tensor) -> Tensor:
        """An output whose cells are these maps (B, K, h, w); what is no cell (class tokens, a border) is that of `output`, which
        has B rows or one."""
        if self.cells is None:
            return self.output(maps, output)
        inside = self.output(maps.new_ones(1, *self.shape), output) != 0
        return torch.where(inside, self.output(maps, output), output)


@dataclass
class Layer:
    """One module that ran: its path, its type and its output's shape without the batch (None where it is no tensor).

    `read` gives the grid as which the output is read, or the reason why it is none. A module may run several times in one
    pass: `call` is the number of the run that is explained, from 0 (the last feature map that the score was made from, else
    the last run that saw the picture), `calls` how many runs saw it, `runs` how many there are.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    read: Callable[[], FeatureGrid | str]
    call: int
    calls: int
    runs: int

    @cached_property
    def _grid_or_reason(self) -> FeatureGrid | str:
        return self.read()  # once somebody asks: it takes a moment, and a network has hundreds of layers

    @property
    def grid(self) -> FeatureGrid | None:
        """How the output is read as a feature map; None where it is none."""
        return None if isinstance(self._grid_or_reason, str) else self._grid_or_reason

    @property
    def reason(self) -> str:
        """Why there is no grid; empty where there is one."""
        return self._grid_or_reason if isinstance(self._grid_or_reason, str) else ""

    def output(self, output: Any, batch: int) -> Tensor:
        """What the layer returned for `batch` images, if it has the form that was recorded; else exit 4."""
        assert self.grid is not None
        expected = self.grid.form(batch)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise unsupported(f"layer {self.name} gives {shape} for {batch} images, not {expected}", SPATIAL)
        return output


def read(shape: Sequence[int], places: Tensor | None, *, paired: bool) -> FeatureGrid | str:
    """The grid that an output of this shape for one image is, or the reason why it is none.

    `places` is a complex tensor of that shape (column + row * i, each 0..1 across the picture, NaN for no place), None
    where no value has a place; `paired` says that every value belongs to two places.
    """
    if paired:
        return "its values belong to pairs of places, as attention weights do"
    if places is None:
        return _single(shape)
    batch = 0 if shape[0] == 1 else 1 if len(shape) == 3 and shape[1] == 1 else None
    if batch is None:
        return f"it has {shape[0]} rows for one image, as windows have"
    spatial = [axis for axis in range(len(shape)) if axis != batch and varies(places, axis)]
    others = [axis for axis in range(len(shape)) if axis != batch and axis not in spatial]
    flat = places.permute(batch, *others, *spatial)[(0,) * (1 + len(others))].flatten()
    cells = (~flat.isnan()).nonzero().flatten()
    if len(cells) < 2:
        return "it is one vector an image"
    result = _rows_and_columns(flat[cells])
    if isinstance(result, str):
        return result
    height, width, by_columns = result
    if by_columns:
        cells = cells.view(width, height).t().flatten()
    features = tuple(shape[axis] for axis in others)
    whole = len(cells) == len(flat) and not by_columns
    return FeatureGrid(
        (batch, *others, *spatial),
        features,
        tuple(shape[axis] for axis in spatial),
        None if whole else cells,
        (math.prod(features), height, width),
        _layout(len(shape), batch, spatial, len(flat) - len(cells)),
    )


def _single(shape: Sequence[int]) -> FeatureGrid | str:
    if len(shape) == 4 and shape[0] == 1 and tuple(shape[2:]) == (1, 1):
        return FeatureGrid((0, 1, 2, 3), (shape[1],), (1, 1), None, (shape[1], 1, 1), "channels first")
    if len(shape) == 4 and tuple(shape[:3]) == (1, 1, 1):
        return FeatureGrid((0, 3, 1, 2), (shape[3],), (1, 1), None, (shape[3], 1, 1), "channels last")
    if len(shape) <= 2 or math.prod(shape) == max(shape):
        return "it is one vector an image"
    return "where its values lie in the picture cannot be told"


def _rows_and_columns(places: Tensor) -> tuple[int, int, bool] | str:
    """(rows, columns, whether the places come column by column) of places that form a grid, in order."""
    rows, columns = places.imag.mul(1e4).round().unique(), places.real.mul(1e4).round().unique()
    height, width = len(rows), len(columns)
    if height * width != len(places):
        return "its values are not one for each place of a grid (windows, shifted or dropped patches)"
    by_rows, by_columns = places.view(height, width), places.view(width, height).t()
    if not _in_order(by_rows) and not _in_order(by_columns):
        return "its patches are not in the order of the picture (windows, shifted or shuffled patches)"
    for steps in (rows / 1e4, columns / 1e4):
        pitch = float(steps[1] - steps[0]) if len(steps) > 1 else 0.0
        if len(steps) > 1 and (float(steps[0]) > 2 * pitch or 1 - float(steps[-1]) > 2 * pitch):
            return "it shows only a part of the picture"
    return height, width, not _in_order(by_rows)


def _in_order(grid: Tensor) -> bool:
    y, x = grid.imag, grid.real
    straight = bool((y - y[:, :1]).abs().max() < 1e-4) and bool((x - x[:1]).abs().max() < 1e-4)
    return straight and bool((y[:, 0].diff() > 0).all()) and bool((x[0].diff() > 0).all())


def _layout(dims: int, batch: int, spatial: list[int], left_out: int) -> str:
    extra = f" and {left_out} more" if left_out else ""
    if len(spatial) == 1:
        return f"tokens{extra}" if batch == 0 else f"tokens{extra}, batch second"
    orders = {(4, 2, 3): "channels first", (4, 1, 2): "channels last"}
    order = orders.get((dims, spatial[0], spatial[-1]), f"rows and columns on axes {spatial}")
    return f"{order}, with a border" if left_out else order
