"""Places: for every value of a tensor, the point of the picture that the value stands for.

A tensor of places has the shape of the values. It is complex: column + row * i, each from 0 to 1 across the picture; NaN
where a value stands for no point. Along an axis on which places do not vary the tensor is expanded (stride 0), so that it
takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

NOWHERE = complex("nan")
Extent = tuple[float, float, float, float]  # top, bottom, left, right


class Rasters:
    """Makes rasters, which are places laid evenly over the last two axes. It recognises its own by their address, so that
    their values need not be read again."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, Extent], Tensor] = {}
        self._known: dict[
            int, tuple[torch.Size, Extent]
        ] = {}  # by address, which stays taken while `_made` holds the tensor

    def make(self, shape: torch.Size, extent: Extent = (0, 1, 0, 1)) -> Tensor:
        """Places of this shape, laid evenly over the extent."""
        height, width = shape[-2:]
        if (height, width, extent) not in self._made:
            top, bottom, left, right = extent
            y = top + (torch.arange(height, dtype=torch.float32) + 0.5) * ((bottom - top) / height)
            x = left + (torch.arange(width, dtype=torch.float32) + 0.5) * ((right - left) / width)
            made = torch.complex(x.expand(height, width), y[:, None].expand(height, width))
            self._made[height, width, extent] = made
            self._known[made.data_ptr()] = made.shape, extent
        return self._made[height, width, extent].expand(shape)

    def extent(self, places: Tensor) -> Extent | None:
        """Top, bottom, left and right of a raster over the last two axes, the same along all others; None for others."""
        size, extent = self._known.get(places.data_ptr(), (None, None))
        if size == places.shape[-2:] and places.stride()[-2:] == (size[1], 1) and not any(places.stride()[:-2]):
            return extent
        return _extent(places)

    def resized(self, places: Tensor, shape: torch.Size) -> Tensor | None:
        """The places of a map that a convolution, pooling or interpolation made from one with these places: rasters of the new
        size over the same extent. None where the old places are no rasters."""
        if len(shape) != 4 or places.dim() != 4 or tuple(shape[2:]) == (1, 1):
            return None
        extent = self.extent(places)
        if extent is not None:
            return self.make(shape, extent)
        extents = [_extent(window) for window in compact(places)]  # windows of the picture, one a row
        if len(extents) != shape[0] or None in extents:
            return None
        return torch.stack([self.make(torch.Size(shape[2:]), e) for e in extents if e is not None])[:, None].expand(
            shape
        )

    def merged(self, several: list[Tensor]) -> Tensor:
        """The places of an elementwise result, given those of its operands: the first operand's, or, where operands differ,
        those of the first that is a raster."""
        first = several[0]
        for other in several[1:]:
            if first.data_ptr() == other.data_ptr() and first.stride() == other.stride():
                continue
            a, b = compact(first), compact(other)
            if a.shape == b.shape and _same(a, b):
                continue
            if self.extent(first) is None and self.extent(other) is not None:
                first = other
        return first


def compact(places: Tensor, axes: Iterable[int] | None = None) -> Tensor:
    """A view of places in which expanded axes (stride 0) have length 1: those of `axes`, or all."""
    for axis in range(places.dim()) if axes is None else axes:
        if places.stride(axis) == 0 and places.shape[axis] > 1:
            places = places.narrow(axis, 0, 1)
    return places


def tight(places: Tensor) -> Tensor:
    """A view of places in which every axis along which they do not vary has length 1, whether or not it is expanded."""
    for axis in range(places.dim()):
        first = places.narrow(axis, 0, 1)
        if places.shape[axis] > 1 and (places.stride(axis) == 0 or _same(places, first)):
            places = first
    return places


def average(places: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean of the places along these axes, which get length 1. Values without a place are left out of it."""
    places = compact(places)
    if all(places.shape[axis] == 1 for axis in axes):
        return places
    nowhere = places.isnan()
    count = (~nowhere).sum(axes, keepdim=True)
    total = torch.where(nowhere, 0, places).sum(axes, keepdim=True) / count.clamp_min(1)
    return torch.where(count == 0, NOWHERE, total)


def several(places: Tensor) -> bool:
    """Whether the places are not all the same."""
    values = compact(places)
    values = values[~values.isnan()]
    return values.numel() > 1 and bool((values - values[0]).abs().max() > 1e-6)


def spread(places: Tensor, shape: Iterable[int]) -> Tensor | None:
    """Places expanded to a shape; None where all are the same, because such values stand for the whole picture."""
    return places.expand(tuple(shape)) if several(places) else None


def expands(source: torch.Size, shape: torch.Size) -> bool:
    """Whether one shape can be expanded to another."""
    lengths = list(zip(reversed(source), reversed(shape), strict=False))
    return len(source) <= len(shape) and all(a in (1, b) for a, b in lengths)


def varies(places: Tensor, axis: int) -> bool:
    """Whether places differ along an axis."""
    if places.shape[axis] == 1 or places.stride(axis) == 0:
        return False
    values = compact(places)
    return not _same(values, values.narrow(axis, 0, 1))


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((((a - b).abs() < 1e-4) | (a.isnan() & b.isnan())).all())


def _extent(places: Tensor) -> Extent | None:
    values = compact(places)
    if any(length != 1 for length in values.shape[:-2]):
        return None
    grid = values.reshape(values.shape[-2:])
    valid = ~grid.isnan()
    sides: list[float] = []
    for part, other in ((grid.imag, 1), (grid.real, 0)):
        count = valid.sum(other, keepdim=True)
        mean = torch.where(valid, part, 0).sum(other, keepdim=True) / count.clamp_min(1)
        line = mean[count > 0]
        if float(torch.where(valid, part - mean, 0).abs().max()) > 1e-4 or not bool((line.diff() > 0).all()):
            return None
        pitch = float(line[-1] - line[0]) / (len(line) - 1) if len(line) > 1 else 1.0
        sides += [round(float(line[0]) - pitch / 2, 6), round(float(line[-1]) + pitch / 2, 6)]
    return sides[0], sides[1], sides[2], sides[3]
