"""Folding: inference with every batch normalisation folded into the convolution before it.

In eval mode BN(conv(x)) is itself a convolution, with weight w * s and bias (b - mean) * s + beta, s = gamma / sqrt(var
+ eps) a channel: exact but for rounding, and one pass over memory less a layer. Nothing of the module is replaced: one
pass is watched to learn which convolution feeds which normalisation, and a `TorchFunctionMode` then hands the folded
weights to those convolutions and passes their output through those normalisations, for the time of its `with`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ASKING = {"__get__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous"}  # of a tensor's form, not values
# What rounding alone may move logits by, as a part of their range. More means that the structure was misread.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}


@dataclass(frozen=True)
class _Pair:
    """A convolution's weight and the normalisation behind it, both as the functions receive them."""

    weight: Tensor
    bias: Tensor | None
    norm: dict[str, Any]

    def tensors(self) -> Iterator[Tensor]:
        for tensor in (self.weight, self.bias, *self.norm.values()):
            if isinstance(tensor, Tensor):
                yield tensor

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (in its own layout) and bias of the one convolution that does both, computed in float64."""
        gamma, beta, mean = self.norm.get("weight"), self.norm.get("bias"), self.norm["running_mean"].double()
        scale = (self.norm["running_var"].double() + self.norm.get("eps", 1e-5)).rsqrt()
        scale = scale if gamma is None else scale * gamma.double()
        bias = ((self.bias.double() if self.bias is not None else 0.0) - mean) * scale
        bias = bias if beta is None else bias + beta.double()
        weight = self.weight.double() * scale.view(-1, *[1] * (self.weight.dim() - 1))
        return torch.empty_like(self.weight).copy_(weight), bias.to(self.weight.dtype)


class _Watch(TorchFunctionMode):
    """Records one pass: which tensors feed what. Holds every tensor, so that identities stay unique."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.uses: Counter[int] = Counter()  # of a tensor, as an argument of any function
        self.convolutions: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.norms: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _ASKING and not isinstance(output, Tensor):
            return output
        self.kept.append((args, kwargs, output))
        self.uses.update(id(t) for t in _tensors((args, kwargs)))
        if func in _CONVOLUTIONS and len(args) > 1 and isinstance(output, Tensor):
            self.convolutions[id(output)] = (args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
        elif func is F.batch_norm:
            self.norms.append({**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs})
        return output

    def pairs(self) -> list[_Pair]:
        """The pairs that can be folded: both used once, nobody else reads what lies between, statistics are fixed."""
        found = []
        for norm in self.norms:
            weight, bias = self.convolutions.get(id(norm["input"]), (None, None))
            mean = norm.get("running_mean")
            if weight is None or mean is None or norm.get("training", False):
                continue
            if self.uses[id(norm["input"])] == self.uses[id(weight)] == self.uses[id(mean)] == 1:
                found.append(_Pair(weight, bias, {k: v for k, v in norm.items() if k != "input"}))
        return found


class Folded(TorchFunctionMode):
    """Inside it, the module that was watched runs folded. Empty (falsy) where there is nothing to fold."""

    def __init__(self, pairs: list[_Pair]) -> None:
        super().__init__()
        self._pairs = pairs
        self._versions = [(tensor, tensor._version) for pair in pairs for tensor in pair.tensors()]
        self._weights = {id(pair.weight): (*pair.folded(), id(pair.norm["running_mean"])) for pair in pairs}
        self._through: dict[int, Tensor] = {}  # by running mean: the folded output on its way to that normalisation
        self.active = True  # off: calls pass as they are

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def current(self) -> bool:
        """Whether the module's values are still those that were folded."""
        return all(tensor._version == version for tensor, version in self._versions)

    def __enter__(self) -> Folded:
        self.active = True
        self._through.clear()  # what a pass that failed left
        return super().__enter__()  # type: ignore[no-any-return]

    def cuts(self, output: Tensor) -> bool:
        """Whether a tensor lies between a folded convolution and its normalisation, so that it is not what it seems."""
        return any(tensor is output for tensor in self._through.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.active:
            return func(*args, **kwargs)
        if func in _CONVOLUTIONS and len(args) > 1:
            weight, bias, mean = self._weights.get(id(args[1]), (None, None, None))
            if weight is not None and mean is not None:
                output = func(args[0], weight, bias, *args[3:], **{k: v for k, v in kwargs.items() if k != "bias"})
                self._through[mean] = output
                return output
        elif func is F.batch_norm and len(args) > 1 and self._through.pop(id(args[1]), None) is args[0]:
            return args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def fold(module: nn.Module, x: Tensor) -> Folded:
    """Learn from one pass over `x` what can be folded in a module in eval mode; checked on `x` itself, and empty where
    the logits come out otherwise than by rounding."""
    watch = _Watch()
    with watch:
        plain = module(x.clone())
    folded = Folded(watch.pairs())
    if folded:
        with folded:
            other = module(x.clone())
        if not isinstance(plain, Tensor) or not (other - plain).abs().max() <= _TOLERANCE[plain.dtype] * _range(plain):
            return Folded([])
    return folded


def _range(logits: Tensor) -> Tensor:
    return logits.max() - logits.min()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
