"""Recording one pass: which operation made each tensor from which, and which place of the picture each value stands for.

`Recorder` sees the operations that PyTorch really executes, below all modules and functions, so it does not matter how a
network is written. Beside every tensor it carries a tensor of *places* of the same shape: column + row * i as complex
numbers, each from 0 to 1 across the picture. Views, concatenations, rolls and padding move places as they move values; a
convolution or pooling that changes the size of a map lays new places evenly; sums over an axis average the places. NaN is
no place: parameters, class tokens, and whatever stands for the whole picture. Places are kept expanded (stride 0) along
axes on which they do not vary, so they cost little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from visx.network.places import NOWHERE, Rasters, average, compact, expands, several, spread, tight

_MATMULS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv"}
_MOVES = {
    "cat", "stack", "roll", "index", "index_select", "gather", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "im2col", "select_copy", "slice_copy", "unfold_copy",
}  # fmt: skip
_COPIES = {"clone", "_to_copy", "contiguous", "alias", "detach", "lift_fresh"}
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "reshape"}
ATTENTION = "scaled_dot_product"
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


class Recorder(TorchDispatchMode):
    """Inside its `with`, records every operation that depends on the picture given to `start`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._known: dict[tuple[Any, ...], Node] = {}
        self._rasters = Rasters()

    def start(self, picture: Tensor) -> None:
        """(1, C, H, W): the network's input."""
        self._add(picture, Node(0, "picture", (), tuple(picture.shape), self._rasters.make(picture.shape)))

    def node(self, tensor: Any) -> Node | None:
        """What made a tensor; None where it does not depend on the picture."""
        return self._known.get(_key(tensor)) if isinstance(tensor, Tensor) else None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: by default a mode imports the whole compiler when it is first used, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [node for t in _tensors(args, kwargs) if (node := self._known.get(_key(t))) is not None]
        output = func(*args, **kwargs)
        results = [t for t in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(t, Tensor)]
        if not inputs:
            for tensor in results:
                self._known.pop(_key(tensor), None)  # its memory may have been another tensor's
            return output
        name = func.overloadpacket.__name__
        try:
            placed = self._placed(name, func, args, kwargs, inputs, results)
        except Exception:  # an operation that places cannot follow: nothing is known of what it returns
            placed = []
        attends = weighs = False
        if name in _MATMULS or name == "convolution" or ATTENTION in name:
            attends = name != "convolution" and sum(self.node(t) is not None for t in args) > 1
            weighs = not attends
        paired = any(node.paired for node in inputs)
        for position, tensor in enumerate(results):
            places, pairs = placed[position] if position < len(placed) else (None, None)
            places = places if places is not None and places.shape == tensor.shape else None
            picks = func.is_view and inputs[0].places is not None and (places is None or _nowhere(places))
            node = Node(self.count, name, tuple(inputs), tuple(tensor.shape), None if picks else places)
            node.paired = places is not None and (paired if pairs is None else pairs)
            node.attends, node.weighs, node.picks = attends, weighs, picks
            self._add(tensor, node)
        return output

    def _add(self, tensor: Tensor, node: Node) -> None:
        self.count += 1
        self._known[_key(tensor)] = node

    def _placed(
        self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Node], results: list[Tensor]
    ) -> list[tuple[Tensor | None, bool | None]]:
        """The places of an operation's results, as far as they can be told, and whether they are of pairs (None: where the
        inputs' are)."""
        where = [node.places for node in inputs if node.places is not None]
        name = name if name.startswith("_") else name.rstrip("_")
        if not where or name in _SCRAMBLING:
            return []
        first, shape = where[0], results[0].shape
        if name in _COPIES:
            return [(first, None)]
        if name in _RESHAPES:
            return [(first.reshape(shape), None)]  # where views of values may be copies of places
        if func.is_view or name in _MOVES:
            moved = self._moved(name, func, args, kwargs)
            every = moved if isinstance(moved, (tuple, list)) else [moved]
            every = every if func.is_view else [tight(m) for m in every]
            return [(m.expand(r.shape), None) for m, r in zip(every, results, strict=True)]
        if name in _MATMULS:
            return [self._product(*[t for t in args if isinstance(t, Tensor)][-2:])]
        if ATTENTION in name:
            queries = self._places(args[0])
            return [(None if queries is None else spread(average(queries, (-1,)), shape), False)]
        if name == "copy":
            source = self._places(args[1])
            return [(None if source is None else source.expand(shape), None)]
        if name == "convolution":
            return [(self._convolved(self._places(args[0]), shape), None)]
        if name in _REDUCTIONS:
            return [(self._reduced(args, kwargs, shape), None)]
        fitting = [node for node in inputs if node.places is not None and expands(node.places.shape, shape)]
        if fitting:  # beside a map of the same size, pairs of places are what is added to it
            single = [node for node in fitting if not node.paired and node.shape == tuple(shape)]
            every = [node.places.expand(shape) for node in single or fitting if node.places is not None]
            return [(self._rasters.merged(every), False if single else None)]
        if len(shape) == 4 and first.dim() == 4 and first.shape[:2] == shape[:2]:  # pooling, interpolation
            return [(self._rasters.resized(average(first, (1,)), shape), None)]
        return []

    def _convolved(self, source: Tensor | None, shape: torch.Size) -> Tensor | None:
        """Places behind a convolution: as they were, where the map keeps its size."""
        if source is None:
            return None
        mean = compact(source, [1]) if source.stride(1) == 0 or source.shape[1] == 1 else average(source, (1,))
        if source.shape[2:] != shape[2:]:
            return self._rasters.resized(mean, shape)
        return mean.expand(shape) if mean.data_ptr() == source.data_ptr() else spread(mean, shape)

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
                return (
                    torch.full((), NOWHERE, dtype=torch.complex64).expand(value.shape)
                    if value.is_floating_point()
                    else value
                )
            if isinstance(value, (tuple, list)):
                return type(value)(replace(v) for v in value)
            return value

        if name == "constant_pad_nd":
            source = replace(args[0])
            return func(compact(source, range(source.dim() - len(args[1]) // 2)), args[1], NOWHERE)
        if name == "cat":
            parts = replace(args[0])
            dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].dim()
            parts = [compact(part, [axis for axis in range(part.dim()) if axis != dim]) for part in parts]
            longest = [max(part.shape[axis] for part in parts) for axis in range(parts[0].dim())]
            return func([part.expand(*longest[:dim], part.shape[dim], *longest[dim + 1 :]) for part in parts], dim)
        return func(*replace(args), **{k: replace(v) for k, v in kwargs.items()})

    def _product(self, left: Tensor, right: Tensor) -> tuple[Tensor | None, bool]:
        """Places of a matrix product: those of the rows of the left or of the columns of the right. Where both have some,
        as in a product of queries and keys, its values belong to pairs."""
        shape = (*left.shape[:-1], right.shape[-1]) if right.dim() > 1 else left.shape[:-1]
        a, b = self._places(left), self._places(right)
        paired = (node := self.node(left)) is not None and node.paired
        rows = None if a is None else average(a, (-1,))
        if rows is not None and several(rows):
            columns = None if b is None or paired else average(b, (-2,))
            both = (columns is not None and several(columns)) or (paired and self.node(right) is None)
            return (rows if right.dim() > 1 else rows.squeeze(-1)).expand(shape), both
        return None if b is None or paired else spread(average(b, (-2,)), shape), False

    def _reduced(self, args: Any, kwargs: Any, shape: torch.Size) -> Tensor | None:
        """Places behind a mean, a sum or a maximum along axes."""
        source = self._places(args[0])
        dims = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, (list, tuple)) or type(a) is int), None))
        if source is None or dims is None:
            return None
        axes = tuple(d % source.dim() for d in ((dims,) if isinstance(dims, int) else dims))
        mean = average(source, axes)
        if mean.dim() != len(shape):
            mean = mean.reshape([n for axis, n in enumerate(mean.shape) if axis not in axes])
        return spread(mean, shape)


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
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _nowhere(places: Tensor) -> bool:
    return bool(compact(places).isnan().all())


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors of a call, also those in lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item
