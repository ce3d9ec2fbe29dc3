"""Recording one pass: which operation made each tensor from which, and which place of the picture each value stands for.

`Recorder` sees the operations that PyTorch really executes, below all modules and functions, so it does not matter how a
network is written. Beside every tensor it carries a tensor of *places* of the same shape: column + row * i as complex
numbers, each from 0 to 1 across the picture. Views, concatenations, rolls and padding move places as they move values; a
convolution or pooling that changes the size of a map lays new places evenly; sums over an axis average the places. NaN is
no place: parameters, class tokens, and whatever stands for the whole picture. Places are kept expanded (stride 0) along
axes on which they do not vary, so they cost little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from visx.network.grid import compact

_NOWHERE = complex("nan")
_MATMULS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv"}
_MOVES = {
    "cat", "stack", "roll", "index", "index_select", "gather", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "im2col", "select_copy", "slice_copy", "unfold_copy",
}  # fmt: skip
_COPIES = {"clone", "_to_copy", "contiguous", "alias", "detach", "lift_fresh"}
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "logsumexp", "var", "std", "norm", "linalg_vector_norm", "nansum",
}  # fmt: skip
# Same shape, yet values change places or mix along an axis.
_SCRAMBLING = {"_fft_c2c", "_fft_r2c", "_fft_c2r", "cumsum", "cumprod", "sort", "mkldnn_rnn_layer", "lstm", "gru"}


@dataclass(eq=False)
class Node:
    """One result of one operation. `inputs` are the nodes that it was made from and that depend on the picture."""

    index: int
    op: str
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    places: Tensor | None = None
    paired: bool = False  # every value belongs to two places
    attends: bool = False  # a product of two tensors that depend on the picture
    weighs: bool = False  # a linear layer or a convolution: a product with parameters
    picks: bool = False  # takes the values without a place (a class token) out of a tensor that has places


@dataclass
class _Placed:
    places: Tensor | None
    paired: bool = False


@dataclass
class Recorder(TorchDispatchMode):
    """Inside its `with`, records every operation that depends on the picture given to `start`."""

    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], Node] = {}

    def start(self, picture: Tensor) -> None:
        """(1, C, H, W): the network's input."""
        self._add(picture, Node(0, "picture", (), tuple(picture.shape), _raster(picture.shape)))

    def node(self, tensor: Any) -> Node | None:
        """What made a tensor; None where it does not depend on the picture."""
        return self._known.get(_key(tensor)) if isinstance(tensor, Tensor) else None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: by default a mode imports the whole compiler when it is first used, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [node for t in _tensors((args, kwargs)) if (node := self.node(t)) is not None]
        output = func(*args, **kwargs)
        results = [t for t in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(t, Tensor)]
        if not inputs:
            for tensor in results:
                self._known.pop(_key(tensor), None)  # its memory may have been another tensor's
            return output
        name = func.overloadpacket.__name__
        try:
            placed = self._placed(name, func, args, kwargs, results)
        except Exception:  # an operation that places cannot follow: nothing is known of what it returns
            placed = []
        attends = weighs = False
        if name in _MATMULS or name == "convolution" or "scaled_dot_product" in name:
            attends = name != "convolution" and sum(self.node(t) is not None for t in args if isinstance(t, Tensor)) > 1
            weighs = not attends
        for position, tensor in enumerate(results):
            here = placed[position] if position < len(placed) else _Placed(None)
            places = here.places if here.places is not None and here.places.shape == tensor.shape else None
            picks = func.is_view and inputs[0].places is not None and not (places is not None and _any(places))
            node = Node(
                len(self.nodes), name, tuple(inputs), tuple(tensor.shape), None if picks else places, here.paired,
                attends, weighs, picks,
            )  # fmt: skip
            self._add(tensor, node)
        return output

    def _add(self, tensor: Tensor, node: Node) -> None:
        node.index = len(self.nodes)
        self.nodes.append(node)
        self._known[_key(tensor)] = node

    def _placed(self, name: str, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> list[_Placed]:
        """The places of an operation's results, as far as they can be told."""
        name = name.rstrip("_") if not name.startswith("_") else name
        given = [(t, self.node(t)) for t in _tensors((args, kwargs))]
        paired = any(node.paired for _, node in given if node is not None)
        where = [node.places for _, node in given if node is not None and node.places is not None]
        if not where or name in _SCRAMBLING:
            return []
        shape = results[0].shape
        if name in _COPIES:
            return [_Placed(where[0], paired)]
        if name in ("view", "_unsafe_view", "_reshape_alias", "reshape"):
            return [_Placed(where[0].reshape(shape), paired)]  # where views of values may be copies of places
        if func.is_view or name in _MOVES:
            moved = self._moved(name, func, args, kwargs)
            every = moved if isinstance(moved, (tuple, list)) else [moved]
            every = every if func.is_view else [_tight(m) for m in every]
            return [_Placed(m.expand(r.shape), paired) for m, r in zip(every, results, strict=True)]
        if name in _MATMULS:
            return [self._product(*[t for t in args if isinstance(t, Tensor)][-2:])]
        if "scaled_dot_product" in name or "flash_attention" in name:
            return [_Placed(_spread(_average(self._places(args[0]), (-1,)), shape))]
        if name == "copy":
            source = self._places(args[1])
            return [_Placed(None if source is None else source.expand(shape), paired)]
        if name == "convolution":
            source = self._places(args[0])
            if source is None:
                return []
            mean = _average(source, (1,))
            if source.shape[2:] == shape[2:]:
                return [_Placed(_spread(mean, shape), paired)]
            return [_Placed(_resized(mean, shape))]
        if name in _REDUCTIONS:
            return [_Placed(self._reduced(args, kwargs, shape), paired)]
        fitting = [w for w in where if _expands(w.shape, shape)]
        if fitting:
            return [_Placed(_merged([w.expand(shape) for w in fitting]), paired)]
        if len(shape) == 4 and where[0].dim() == 4 and where[0].shape[:2] == shape[:2]:  # pooling, interpolation
            return [_Placed(_resized(_average(where[0], (1,)), shape))]
        return []

    def _places(self, tensor: Tensor) -> Tensor | None:
        node = self.node(tensor)
        return None if node is None else node.places

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The same operation on places instead of values."""

        def replace(value: Any) -> Any:
            if isinstance(value, Tensor):
                places = self._places(value)
                if places is not None:
                    return places
                return torch.full((), _NOWHERE).expand(value.shape) if value.is_floating_point() else value
            if isinstance(value, (tuple, list)):
                return type(value)(replace(v) for v in value)
            return value

        if name == "constant_pad_nd":
            source = replace(args[0])
            return func(_narrow(source, range(source.dim() - len(args[1]) // 2)), args[1], _NOWHERE)
        if name == "cat" and len(args[0]) > 0:
            parts = replace(args[0])
            dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].dim()
            narrow = [_narrow(part, [a for a in range(part.dim()) if a != dim]) for part in parts]
            lengths = [max(part.shape[a] for part in narrow) for a in range(parts[0].dim())]
            spread = [part.expand(*lengths[:dim], part.shape[dim], *lengths[dim + 1 :]) for part in narrow]
            return func(spread, dim)
        return func(*replace(args), **{k: replace(v) for k, v in kwargs.items()})

    def _product(self, left: Tensor, right: Tensor) -> _Placed:
        """Places of a matrix product: those of the rows of the left or of the columns of the right."""
        shape = (*left.shape[:-1], right.shape[-1]) if right.dim() > 1 else left.shape[:-1]
        a, b = self._places(left), self._places(right)
        paired = (node := self.node(left)) is not None and node.paired
        rows = _average(a, (-1,)) if a is not None else None
        columns = _average(b, (-2,)) if b is not None and not paired else None
        rows = rows if rows is not None and _several(rows) else None
        columns = columns if columns is not None and _several(columns) else None
        if rows is not None:
            both = columns is not None or (paired and b is None)
            return _Placed(_spread(rows if right.dim() > 1 else rows.squeeze(-1), shape), both)
        return _Placed(None if columns is None else _spread(columns, shape))

    def _reduced(self, args: Any, kwargs: Any, shape: torch.Size) -> Tensor | None:
        source = self._places(args[0])
        if source is None or (len(args) < 2 and not kwargs):
            return None
        for dims in (kwargs.get("dim"), *args[1:]):
            dims = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
            if isinstance(dims, (tuple, list)) and dims:
                mean = _average(source, tuple(dims))
                kept = [mean.shape[i] for i in range(mean.dim()) if i not in [d % mean.dim() for d in dims]]
                full = [source.shape[i] for i in range(mean.dim()) if i not in [d % mean.dim() for d in dims]]
                mean = mean if mean.dim() == len(shape) else mean.reshape(kept)
                return _spread(mean, shape if mean.dim() == len(shape) else torch.Size(full))
        return None


def ancestors(node: Node) -> set[Node]:
    """A node and all that it was made from."""
    seen, waiting = {node}, [node]
    while waiting:
        for before in waiting.pop().inputs:
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return seen


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a tensor from all others that are alive, also where autograd wraps it anew."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _raster(shape: torch.Size, extent: tuple[float, float, float, float] = (0, 1, 0, 1)) -> Tensor:
    """Places laid evenly over the last two axes; `extent` is top, bottom, left, right."""
    top, bottom, left, right = extent
    height, width = shape[-2:]
    y = top + (torch.arange(height) + 0.5) * ((bottom - top) / height)
    x = left + (torch.arange(width) + 0.5) * ((right - left) / width)
    return torch.complex(x.expand(height, width), y[:, None].expand(height, width)).expand(shape)


def _narrow(places: Tensor, axes: Iterable[int]) -> Tensor:
    """Expanded places without their repetitions along these axes."""
    for axis in axes:
        if places.stride(axis) == 0 and places.shape[axis] > 1:
            places = places.narrow(axis, 0, 1)
    return places


def _tight(places: Tensor) -> Tensor:
    """Places without their repetitions, whether expanded or written out."""
    for axis in range(places.dim()):
        first = places.narrow(axis, 0, 1)
        if places.shape[axis] > 1 and (places.stride(axis) == 0 or _same(places, first)):
            places = first
    return places


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((((a - b).abs() < 1e-4) | (a.isnan() & b.isnan())).all())


def _average(places: Tensor | None, axes: tuple[int, ...]) -> Tensor:
    """The mean of the places along these axes, which keep length 1; no place counts for nothing."""
    assert places is not None
    places = compact(places)
    if all(places.shape[axis] == 1 for axis in axes):
        return places
    nowhere = places.isnan()
    count = (~nowhere).sum(axes, keepdim=True)
    total = torch.where(nowhere, 0, places).sum(axes, keepdim=True) / count.clamp_min(1)
    return torch.where(count == 0, _NOWHERE, total)


def _any(places: Tensor) -> bool:
    return not bool(compact(places).isnan().all())


def _several(places: Tensor) -> bool:
    """Whether there are at least two places."""
    values = compact(places)
    values = values[~values.isnan()]
    return values.numel() > 1 and bool((values - values[0]).abs().max() > 1e-6)


def _spread(places: Tensor, shape: Any) -> Tensor | None:
    return places.expand(shape) if _several(places) else None


def _expands(source: torch.Size, shape: torch.Size) -> bool:
    lengths = list(zip(reversed(source), reversed(shape), strict=False))
    return len(source) <= len(shape) and all(a in (1, b) for a, b in lengths)


def _merged(several: list[Tensor]) -> Tensor:
    """The places of an elementwise result: the operands', where they agree; else those of the one that is a raster."""
    first = several[0]
    for other in several[1:]:
        if first.data_ptr() == other.data_ptr() and first.stride() == other.stride():
            continue
        a, b = compact(first), compact(other)
        if a.shape == b.shape and _same(a, b):
            continue
        if _extent(first) is None and _extent(other) is not None:
            first = other
    return first


def _extent(places: Tensor) -> tuple[float, float, float, float] | None:
    """(top, bottom, left, right) of a raster over the last two axes, the same on all others; None where it is none."""
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
        sides += [float(line[0]) - pitch / 2, float(line[-1]) + pitch / 2]
    return sides[0], sides[1], sides[2], sides[3]


def _resized(places: Tensor, shape: torch.Size) -> Tensor | None:
    """New places for a map that a convolution, pooling or interpolation brought to another size."""
    if len(shape) != 4 or places.dim() != 4 or tuple(shape[2:]) == (1, 1):
        return None
    extent = _extent(places)
    return None if extent is None else _raster(shape, extent)
