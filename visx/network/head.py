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

from visx.network.rules import OTHER_ACTIVATIONS, Arithmetic, relu_call
from visx.state import Network

Key = tuple[int, int]  # identity and version of a tensor

_ADAPTIVE = {F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.adaptive_avg_pool1d}
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
_FLATTENING = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape}
_LINEAR = {F.linear, F.conv2d, torch.conv2d}
_PASSING = {F.dropout, F.dropout2d, torch.squeeze, Tensor.squeeze, Tensor.contiguous, torch.dropout}


@dataclass
class Head:
    """A classification head of CAM: `features` (B, K, h, w), averaged over space, times `weight` (classes, K)."""

    features: Tensor
    weight: Tensor


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

    def pooling(self) -> _Call | None:
        """The last call that takes a feature map's space away on the way to the logits."""
        last: _Call | None = None
        for call in map(self._unfolded, self.calls.values()):  # in order of execution
            x = call.input
            if x.dim() != 4:
                continue
            spatial = x.shape[2] * x.shape[3] > 1
            gone = len(call.output_shape) < 3 or all(n == 1 for n in call.output_shape[2:])
            reduces = call.func in _REDUCING and spatial and gone and call.output_shape[:2] == tuple(x.shape[:2])
            if call.func in _ADAPTIVE or reduces:
                last = call
            elif call.func in _FLATTENING and spatial and len(call.output_shape) == 2:
                # flattening what was just pooled takes nothing away that the pooling had not
                last = last if last is not None and self._made_by(call.source, last) else call
        return last

    def head(self, logits: Tensor) -> Head | None:
        """The CAM head, if the logits are one linear map of a global average (bias aside), else None."""
        pool = self.pooling()
        if pool is None or pool.func not in _AVERAGING or any(n != 1 for n in pool.output_shape[2:]):
            return None
        call = self._origin(_key(logits))
        if call is None:
            return None
        if call.output == pool.output:  # class maps averaged: the classifier is a 1x1 convolution before the pooling
            conv = self._convolution(pool.source)
            return None if conv is None else Head(conv.input, conv.args[1][:, :, 0, 0])
        if call.func not in _LINEAR or not self._made_by(call.source, pool):
            return None
        weight = call.args[1] if len(call.args) > 1 else call.kwargs["weight"]
        weight = weight.flatten(1)  # a 1x1 convolution behind the pooling is a linear layer too
        return Head(pool.input, weight) if weight.shape[1] == pool.input.shape[1] else None

    def _made_by(self, key: Key, pool: _Call) -> bool:
        """Whether a tensor is a call's result, flattening and the like seen through."""
        call = self._origin(key)
        return call is not None and call.output == pool.output

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
    """One forward pass without gradients: logits (B, K) and the CAM head with this batch's features."""
    with torch.no_grad():
        trace = Trace()
        with trace:
            logits = network.logits(x)
    return logits, trace.head(logits)


def _key(tensor: Tensor) -> Key:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
