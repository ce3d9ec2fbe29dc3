"""The classification head of CAM, found by recording the functions of one pass.

From the logits it walks back through the linear layer to the pooling that takes space away. Tensors are told apart by
identity *and* version, so in-place ReLUs count as what they are: the pooled tensor of DenseNet is the one after its
functional ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from visx.network.isolation import hooked
from visx.network.network import Network
from visx.network.rules import OTHER_ACTIVATIONS, Arithmetic, relu_call

Key = tuple[int, int]  # identity and version of a tensor

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
_LINEAR = {F.linear, F.conv2d, torch.conv2d}
_PASSING = {F.dropout, F.dropout2d, torch.squeeze, Tensor.squeeze, Tensor.contiguous, torch.dropout}


@dataclass
class Head:
    """A classification head of CAM: `features` (B, K, h, w), averaged over space, times `weight` (classes, K).

    `last_axis`: the features are (B, h, w, K) or (B, N, K) instead, averaged over all between.
    """

    features: Tensor
    weight: Tensor
    last_axis: bool = False


@dataclass(frozen=True)
class _Call:
    """One function call: the tensor it was given first, and the one it returned."""

    func: Any
    output: Key
    source: Key
    input: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_shape: tuple[int, ...]


class Trace(TorchFunctionMode):
    """Records the functions called while it is active. Holds every tensor, so that identities stay unique."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.calls: dict[Key, _Call] = {}
        self.relus = 0
        self._arithmetic = Arithmetic()
        self.others: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if func in _PROPERTIES or first is None:
            return func(*args, **kwargs)
        if relu_call(func, args, kwargs) is not None or self._arithmetic.relu(func, args, kwargs) is not None:
            self.relus += 1
        elif func in OTHER_ACTIVATIONS:
            self.others[func.__name__] = None
        source = _key(first)
        output = func(*args, **kwargs)
        self._arithmetic.remember(func, args, kwargs, output)
        if isinstance(output, Tensor) and _key(output) != source:
            self.kept.append((first, output))
            self.calls[_key(output)] = _Call(func, _key(output), source, first, args, kwargs, tuple(output.shape))
        return output

    def head(self, logits: Tensor) -> Head | None:
        """The CAM head, if the logits are one linear map of a global average (bias aside), else None."""
        call = self._origin(_key(logits))
        if call is None:
            return None
        if call.func not in _LINEAR:  # class maps averaged: the classifier is a 1x1 convolution before the pooling
            pool = self._average(_key(logits))
            conv = self._convolution(pool.source) if pool is not None else None
            return None if conv is None else Head(conv.input, conv.args[1][:, :, 0, 0])
        weight = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
        weight = weight.flatten(1)  # a 1x1 convolution behind the pooling is a linear layer too
        pool = self._average(call.source)
        if pool is not None and weight.shape[1] == pool.input.shape[1]:
            return Head(pool.input, weight)
        pool = self._origin(call.source)
        if pool is not None and pool.func in _MEANS and _all_but_ends(pool):
            return Head(pool.input, weight, last_axis=True)
        return None

    def _average(self, key: Key) -> _Call | None:
        """The global average over the last two axes of (B, K, h, w) that a tensor is, flattening and the like seen through."""
        call = self._origin(key)
        call = None if call is None else self._unfolded(call)
        if call is None or call.func not in _AVERAGING or call.input.dim() != 4:
            return None
        gone = all(length == 1 for length in call.output_shape[2:])
        return call if gone and call.output_shape[:2] == tuple(call.input.shape[:2]) else None

    def _unfolded(self, call: _Call) -> _Call:
        """A reduction of (B, K, n) that was folded or half reduced from (B, K, h, w), as one of the latter."""
        before = self.calls.get(call.source)
        if call.func not in _REDUCING or call.input.dim() != 3 or before is None or before.input.dim() != 4:
            return call
        folds = before.func in _FLATTENING or before.func in _REDUCING
        same = before.output_shape[:2] == tuple(before.input.shape[:2]) == call.output_shape[:2]
        return replace(call, input=before.input, source=before.source) if folds and same else call

    def _origin(self, key: Key | None) -> _Call | None:
        """The call that made a tensor, flattening, squeezing and idle dropout seen through."""
        while key is not None:
            call = self.calls.get(key)
            if call is None or call.func not in _FLATTENING | _PASSING:
                return call
            if (
                call.input is not None
                and call.input.dim() == 4
                and call.input.shape[2] * call.input.shape[3] > 1
                and len(call.output_shape) < 4
            ):
                return call  # flattening that mixes space into the features is no mere view
            key = call.source
        return None

    def _convolution(self, key: Key | None) -> _Call | None:
        """The 1x1 convolution that made class maps, an activation behind it seen through."""
        call = self._origin(key)
        while call is not None and relu_call(call.func, call.args, call.kwargs) is not None:
            call = self._origin(call.source)
        if (
            call is None
            or call.func not in {F.conv2d, torch.conv2d}
            or len(call.args) < 2
            or call.args[1].shape[2:] != (1, 1)
        ):
            return None
        return call


_PROPERTIES = {
    getattr(Tensor, n).__get__
    for n in ("shape", "dtype", "device", "requires_grad", "ndim", "_version", "is_cuda", "data", "grad_fn")
    if hasattr(Tensor, n)
} | {Tensor.size, Tensor.dim, Tensor.detach}


def run_with_head(network: Network, x: Tensor) -> tuple[Tensor, Head | None]:
    """One forward pass without gradients: logits (B, K) and the CAM head with this batch's features (B, K, h, w)."""
    raw: list[Any] = []
    with torch.no_grad(), hooked(network.module, lambda m, args, output: raw.append(output)):
        trace = Trace()
        with trace:
            logits = network.logits(x)
    head = trace.head(network.outputs.tensor(raw[-1])) if raw else None
    if head is None:
        return logits, None
    grid = network.pooled_grid(x.shape[1:]) if head.last_axis else None
    features = head.features if grid is None else grid.maps(head.features)
    weight = torch.cat([-head.weight, head.weight]) if network.outputs.single else head.weight
    return logits, None if head.last_axis and grid is None else Head(features, weight)


def _all_but_ends(call: _Call) -> bool:
    """Whether a mean goes over all axes but the first and the last."""
    dims = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    between = list(range(1, call.input.dim() - 1))
    return sorted(d % call.input.dim() for d in dims) == between and call.output_shape == (
        call.input.shape[0],
        call.input.shape[-1],
    )


def _key(tensor: Tensor) -> Key:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
