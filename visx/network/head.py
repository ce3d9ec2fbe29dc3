"""The classification head of CAM, read from the calls of a recorded pass.

From the logits it goes back through the linear layer, and a normalisation before it, to the pooling that takes space away.
Tensors are told apart by
identity *and* by how often they were written to, so in-place ReLUs count as what they are: the pooled tensor of DenseNet
is the one after its functional ReLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visx.network.grid import FeatureGrid, read
from visx.network.outputs import in_full
from visx.network.record import Call, Node, Record, State, Value
from visx.network.rules import relu_call

_AVERAGING = {F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, Tensor.mean}
_REDUCING = {
    F.avg_pool2d,
    F.max_pool2d,
    torch.max_pool2d,
    torch.mean,
    Tensor.mean,
    torch.sum,
    Tensor.sum,
    torch.amax,
    Tensor.amax,
}
_MEANS = {torch.mean, Tensor.mean}
_FLATTENING = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape}
_CONVOLUTIONS = {F.conv2d, torch.conv2d}
_LINEAR = {F.linear} | _CONVOLUTIONS
_ARRANGING = {Tensor.permute, torch.permute, Tensor.transpose, torch.transpose}
_LAYER_NORMS = {F.layer_norm, torch.layer_norm}
_PASSING = {F.dropout, F.dropout2d, torch.squeeze, Tensor.squeeze, Tensor.contiguous, torch.dropout}


@dataclass
class Norm:
    """A normalisation of averaged features (B, K) before the linear layer: by the `variance` (K) of batch normalisation, or
    (None) by that of each image's own features `input`; then times `scale` (K), if there is one."""

    input: Value
    scale: Value | None
    eps: float
    variance: Value | None = None

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights (classes, K) of the features that are averaged, for those of the normalised ones, and what the map of
        each image is multiplied with (B,); None: nothing. Both in float32 or better, while the record is open."""
        weight = in_full(weight)
        if self.scale is not None:
            weight = weight * in_full(self._tensor(self.scale))
        if self.variance is not None:
            return weight * (in_full(self._tensor(self.variance)) + self.eps).rsqrt(), None
        features = in_full(self._tensor(self.input))
        features = features.reshape(len(features), -1)
        variance = features.var(1, unbiased=False)
        return weight - weight.mean(1, keepdim=True), (variance + self.eps).rsqrt()

    @staticmethod
    def _tensor(value: Value) -> Tensor:
        assert value.tensor is not None, "a record keeps its tensors until it is closed"
        return value.tensor


@dataclass
class Head:
    """A classification head of CAM: `features` (B, K, h, w), averaged over space, normalised where there is a `norm`, times
    `weight` (classes, K) or (classes, K, 1, 1).

    `last_axis`: the features are (B, h, w, K) or (B, N, K) instead, averaged over all between.
    """

    features: Value
    weight: Value
    last_axis: bool = False
    norm: Norm | None = None

    def grid(self) -> FeatureGrid | None:
        """How features on the last axis are read, from a closed record; None where something else than the cells of a grid
        is averaged, too."""
        node = self.features.node
        grid = read(node.shape, node.places, paired=node.paired) if node is not None else ""
        if isinstance(grid, str) or grid.single:
            return None
        return grid if grid.cells is None or len(grid.cells) == math.prod(grid.places) else None


def reads_token(score: Node | None) -> bool:
    """Whether a score was made from tokens that stand for no place of the picture (class tokens), taken from between others
    that do."""
    seen: set[Node] = set()
    waiting = [] if score is None else [score]
    while waiting:
        node = waiting.pop()
        if node.picks:
            return True
        if node not in seen and not node.attends:
            seen.add(node)
            waiting += node.inputs
    return False


def cam_head(record: Record, logits: State | None) -> Head | None:
    """The CAM head of a recorded pass, if its logits are one linear map of a global average (bias aside), else None."""
    calls = {call.result: call for call in record.calls if call.result is not None and call.result != call.source}
    return None if logits is None else _Way(calls).head(logits)


@dataclass
class _Made:
    """A tensor that a call made from another, the first of its arguments."""

    call: Call
    input: Value
    source: State

    @property
    def shape(self) -> torch.Size:
        assert self.call.result is not None
        return self.call.result[0].shape


class _Way:
    """The way back from the logits, along the calls by what they returned."""

    def __init__(self, calls: dict[State, Call]) -> None:
        self._calls = calls

    def head(self, logits: State) -> Head | None:
        """See `cam_head`."""
        made = self._origin(logits)
        if made is None:
            return None
        if made.call.func not in _LINEAR:  # class maps averaged: the classifier is a 1x1 convolution before the pooling
            pool = self._average(logits)
            conv = self._convolution(pool.source) if pool is not None else None
            return None if conv is None else Head(conv.input, conv.call.args[1])
        call = made.call
        weight: Value = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
        width = math.prod(weight.shape[1:])  # a 1x1 convolution behind the pooling is a linear layer too
        source, norm = self._norm(made.source, width)
        pool = self._average(source)
        if pool is not None and width == pool.input.shape[1]:
            return Head(pool.input, weight, norm=norm)
        pool = self._origin(source)
        if pool is not None and pool.call.func in _MEANS and _all_but_ends(pool):
            return Head(pool.input, weight, last_axis=True, norm=norm)
        return None

    def _norm(self, state: State, width: int) -> tuple[State, Norm | None]:
        """The normalisation of one vector of so many features an image that made a tensor, and what it was made from; else
        the tensor itself and None."""
        made = self._origin(state)
        if made is None or not _is_vector(made.input.shape, width):
            return state, None
        args, kwargs = made.call.args, made.call.kwargs
        if made.call.func in _LAYER_NORMS:
            given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
            whole = made.input.shape[-1] == width and len(given["normalized_shape"]) == 1
            norm = Norm(made.input, given.get("weight"), given.get("eps", 1e-5))
        elif made.call.func is F.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            given = dict(zip(names, args, strict=False)) | kwargs
            whole = not given.get("training", False) and given["running_var"] is not None
            norm = Norm(made.input, given.get("weight"), given.get("eps", 1e-5), given["running_var"])
        else:
            return state, None
        return (made.source, norm) if whole else (state, None)

    def _made(self, state: State) -> _Made | None:
        call = self._calls.get(state)
        return None if call is None or call.source is None else _Made(call, call.source[0], call.source)

    def _average(self, state: State) -> _Made | None:
        """The global average over the last two axes of (B, K, h, w) that a tensor is, flattening and the like seen through."""
        made = self._origin(state)
        made = None if made is None else self._unfolded(made)
        if made is None or made.call.func not in _AVERAGING or len(made.input.shape) != 4:
            return None
        gone = all(length == 1 for length in made.shape[2:])
        return made if gone and made.shape[:2] == made.input.shape[:2] else None

    def _unfolded(self, made: _Made) -> _Made:
        """A reduction of (B, K, n) that was folded or half reduced from (B, K, h, w), as one of the latter."""
        before = self._made(made.source)
        if made.call.func not in _REDUCING or len(made.input.shape) != 3 or before is None:
            return made
        folds = len(before.input.shape) == 4 and before.call.func in _FLATTENING | _REDUCING
        same = before.shape[:2] == before.input.shape[:2] == made.shape[:2]
        return replace(made, input=before.input, source=before.source) if folds and same else made

    def _origin(self, state: State) -> _Made | None:
        """The call that made a tensor, flattening, squeezing and idle dropout seen through."""
        made = self._made(state)
        while made is not None and (made.call.func in _FLATTENING | _PASSING or _turned(made)):
            if len(made.input.shape) == 4 and math.prod(made.input.shape[2:]) > 1 and len(made.shape) < 4:
                return made  # flattening that mixes space into the features is no mere view
            made = self._made(made.source)
        return made

    def _convolution(self, state: State) -> _Made | None:
        """The 1x1 convolution that made class maps, an activation behind it seen through."""
        made = self._origin(state)
        while made is not None and relu_call(made.call.func, made.call.args, made.call.kwargs) is not None:
            made = self._origin(made.source)
        if made is None or made.call.func not in _CONVOLUTIONS or len(made.call.args) < 2:
            return None
        return made if made.call.args[1].shape[2:] == (1, 1) else None


def _is_vector(shape: torch.Size, width: int) -> bool:
    """Whether a tensor of this shape has one vector of so many features an image."""
    return math.prod(shape[1:]) == width and max(shape[1:], default=1) == width


def _turned(made: _Made) -> bool:
    """Whether a call changed the order of axes of which one alone is longer than 1, besides that of the batch."""
    lengths = [n for n in made.input.shape[1:] if n > 1]
    return made.call.func in _ARRANGING and len(lengths) <= 1 and made.shape[0] == made.input.shape[0]


def _all_but_ends(mean: _Made) -> bool:
    """Whether a mean goes over all axes but the first and the last."""
    args, kwargs, shape = mean.call.args, mean.call.kwargs, mean.input.shape
    dims: Any = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    between = list(range(1, len(shape) - 1))
    return sorted(d % len(shape) for d in dims) == between and mean.shape == (shape[0], shape[-1])
