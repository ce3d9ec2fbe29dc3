"""Where an operation moves the places of the picture: the places of its results, from those of its inputs.

Views, concatenations, rolls and padding move places as they move values. A convolution or pooling that changes the size
of a map lays new places evenly. Sums over an axis average the places. The place NaN (`NOWHERE`) says that a value stands for
no place of the picture, as parameters, class tokens and whatever stands for the whole picture do. How places are kept:
visx/network/places.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from visx.network.places import NOWHERE, Rasters, average, compact, expands, several, spread, tight

MATMULS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv"}
ATTENTION = "scaled_dot_product"  # in the names of PyTorch's fused attentions
_MOVES = {
    "cat", "stack", "roll", "index", "index_select", "gather", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "im2col", "col2im", "select_copy", "slice_copy", "unfold_copy",
}  # fmt: skip
_COPIES = {"clone", "_to_copy", "contiguous", "alias", "detach", "lift_fresh"}
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "reshape"}
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "logsumexp", "var", "std", "norm", "linalg_vector_norm", "nansum",
}  # fmt: skip
_PICKS = {"index", "index_select", "gather"}  # moves values as a tensor of numbers says
# Same shape, yet values change places or mix along an axis.
_SCRAMBLING = {
    "topk",
    "_fft_c2c",
    "_fft_r2c",
    "_fft_c2r",
    "cumsum",
    "cumprod",
    "sort",
    "mkldnn_rnn_layer",
    "lstm",
    "gru",
}


class Placed(Protocol):
    """What is known of one tensor: its shape, the place of each of its values (None: not known), and `paired`, whether each
    of its values belongs to two places, as attention weights do."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def places(self) -> Tensor | None: ...
    @property
    def paired(self) -> bool: ...


class Result(NamedTuple):
    """The places of one result of an operation (None: not known), and whether its values belong to pairs of places (None:
    they do if those of an input do)."""

    places: Tensor | None
    paired: bool | None = None


@dataclass(frozen=True)
class Operation:
    """One operation of PyTorch that was executed: its name without the overload, its arguments, and its results. `known` has
    what is known of the tensors among the arguments that depend on the picture, by `id`."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    known: Mapping[int, Placed]

    def places(self, tensor: Tensor) -> Tensor | None:
        """The places of an argument; None where they are not known."""
        known = self.known.get(id(tensor))
        return None if known is None else known.places

    def given(self) -> Iterator[Tensor]:
        """The tensors among its arguments that depend on the picture."""
        for item in (*self.args, *self.kwargs.values()):
            for part in item if isinstance(item, (tuple, list)) else (item,):
                if isinstance(part, Tensor) and id(part) in self.known:
                    yield part


class Placement:
    """Works out the places of one pass, operation by operation."""

    def __init__(self) -> None:
        self._rasters = Rasters()

    def of_picture(self, shape: tuple[int, ...]) -> Tensor:
        """The places of the picture itself (1, C, H, W)."""
        return self._rasters.make(torch.Size(shape))

    def behind(self, operation: Operation) -> list[Result]:
        """The places of an operation's results, in order. The list may be shorter than the results: of the rest, as of a
        `Result(None)`, no places are known."""
        inputs = list(operation.known.values())
        where = [known.places for known in inputs if known.places is not None]
        name = operation.name if operation.name.startswith("_") else operation.name.rstrip("_")
        if not where or name in _SCRAMBLING:
            return [Result(None)]
        if name in _PICKS and any(not given.is_floating_point() for given in operation.given()):
            return [Result(None)]  # another picture picks other values: tokens that are dropped, merged or sorted
        first, shape, args = where[0], operation.results[0].shape, operation.args
        if name in _COPIES:
            return [Result(first)]
        if name in _RESHAPES:
            return [Result(first.reshape(shape))]  # a copy where the expanded places have no such view
        if operation.func.is_view or name in _MOVES:
            return self._rearranged(name, operation)
        if name in MATMULS:
            return [_product(operation, *[t for t in args if isinstance(t, Tensor)][-2:])]
        if ATTENTION in name:
            queries = operation.places(args[0])
            return [Result(None if queries is None else spread(average(queries, (-1,)), shape), False)]
        if name == "copy":
            source = operation.places(args[1])
            return [Result(None if source is None else source.expand(shape))]
        if name == "convolution":
            return [Result(self._convolved(operation.places(args[0]), shape))]
        if name in _REDUCTIONS:
            return [Result(_reduced(operation, shape))]
        fitting = [known for known in inputs if known.places is not None and expands(known.places.shape, shape)]
        if fitting:
            # Beside an unpaired input of the result's shape a paired one, such as a bias of attention, does not count.
            single = [known for known in fitting if not known.paired and known.shape == tuple(shape)]
            every = [known.places.expand(shape) for known in single or fitting if known.places is not None]
            return [Result(self._rasters.merged(every), False if single else None)]
        if len(shape) == 4 and first.dim() == 4 and first.shape[:2] == shape[:2]:  # pooling, interpolation
            return [Result(self._rasters.resized(average(first, (1,)), shape))]
        return [Result(None)]

    def _rearranged(self, name: str, operation: Operation) -> list[Result]:
        """Places behind a view or another operation that only moves values."""
        moved = _moved(name, operation)
        every = moved if isinstance(moved, (tuple, list)) else [moved]
        every = every if operation.func.is_view else [tight(places) for places in every]
        return [Result(places.expand(result.shape)) for places, result in zip(every, operation.results, strict=True)]

    def _convolved(self, source: Tensor | None, shape: torch.Size) -> Tensor | None:
        """Places behind a convolution: as they were, where the map keeps its size."""
        if source is None:
            return None
        mean = compact(source, [1]) if source.stride(1) == 0 or source.shape[1] == 1 else average(source, (1,))
        if source.shape[2:] != shape[2:]:
            return self._rasters.resized(mean, shape)
        return mean.expand(shape) if mean.data_ptr() == source.data_ptr() else spread(mean, shape)


def _moved(name: str, operation: Operation) -> Any:
    """The same operation on places instead of values."""
    func, args, kwargs = operation.func, operation.args, operation.kwargs

    def replace(value: Any) -> Any:
        if isinstance(value, Tensor):
            places = operation.places(value)
            if places is not None:
                return places
            nowhere = torch.full((), NOWHERE, dtype=torch.complex64)
            return nowhere.expand(value.shape) if value.is_floating_point() else value
        if isinstance(value, (tuple, list)):
            return type(value)(replace(v) for v in value)
        return value

    if name == "constant_pad_nd":
        source = replace(args[0])
        return func(compact(source, range(source.dim() - len(args[1]) // 2)), args[1], NOWHERE)
    if name == "col2im":  # a sum where windows overlap
        source = replace(args[0])
        return func(source, *args[1:], **kwargs) / func(torch.ones_like(source), *args[1:], **kwargs)
    if name == "cat":
        parts = replace(args[0])
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].dim()
        parts = [compact(part, [axis for axis in range(part.dim()) if axis != dim]) for part in parts]
        longest = [max(part.shape[axis] for part in parts) for axis in range(parts[0].dim())]
        return func([part.expand(*longest[:dim], part.shape[dim], *longest[dim + 1 :]) for part in parts], dim)
    return func(*replace(args), **{k: replace(v) for k, v in kwargs.items()})


def _product(operation: Operation, left: Tensor, right: Tensor) -> Result:
    """Places of a matrix product: those of the rows of the left or of the columns of the right. Where both have some, as in
    a product of queries and keys, its values belong to pairs."""
    shape = (*left.shape[:-1], right.shape[-1]) if right.dim() > 1 else left.shape[:-1]
    a, b = operation.places(left), operation.places(right)
    paired = (known := operation.known.get(id(left))) is not None and known.paired
    rows = None if a is None else average(a, (-1,))
    if rows is not None and several(rows):
        columns = None if b is None or paired else average(b, (-2,))
        both = (columns is not None and several(columns)) or (paired and id(right) not in operation.known)
        return Result((rows if right.dim() > 1 else rows.squeeze(-1)).expand(shape), both)
    return Result(None if b is None or paired else spread(average(b, (-2,)), shape), False)


def _reduced(operation: Operation, shape: torch.Size) -> Tensor | None:
    """Places behind a mean, a sum or a maximum along axes."""
    args, kwargs = operation.args, operation.kwargs
    source = operation.places(args[0])
    dims = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, (list, tuple)) or type(a) is int), None))
    if source is None or dims is None:
        return None
    axes = tuple(d % source.dim() for d in ((dims,) if isinstance(dims, int) else dims))
    mean = average(source, axes)
    if mean.dim() != len(shape):
        mean = mean.reshape([n for axis, n in enumerate(mean.shape) if axis not in axes])
    return spread(mean, shape)
