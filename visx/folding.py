"""Folding: passes with every batch normalisation, and without gradients the ReLU behind it, folded into the convolution
before it.

In eval mode BN(conv(x)) is itself a convolution, with weight w * s and bias (b - mean) * s + beta, s = gamma / sqrt(var
+ eps) a channel: exact but for rounding, and one pass over memory less a layer. On a CPU oneDNN's convolution also
rectifies what it writes, which saves another, and takes weights that are in its own layout already (the operators that
torch's own compiler uses): a quarter less time for a single image.

Nothing of the module is replaced: one pass is watched to learn which convolution feeds which normalisation and ReLU, and
a `TorchFunctionMode` then hands the folded weights to those convolutions and passes their output through what is done
already, for the time of its `with`.
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

from visx.convolutions import CONVOLUTIONS, Convolution, packed, pointwise
from visx.rules import ReluCall, relu_call

_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ASKING = {"__get__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous"}  # of a tensor's form, not values
# What rounding alone may move logits by, as a part of their range. More means that the structure was misread.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}
_FUSIBLE = {torch.float32, torch.bfloat16}


@dataclass(frozen=True)
class Chain:
    """A convolution's weight and the normalisation behind it, both as the functions receive them, and the ceiling of the
    ReLU behind that, if there is one."""

    weight: Tensor
    bias: Tensor | None
    norm: dict[str, Any]
    ceiling: float | None

    def tensors(self) -> Iterator[Tensor]:
        for tensor in (self.weight, self.bias, *self.norm.values()):
            if isinstance(tensor, Tensor):
                yield tensor

    def ends_in(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether these are the arguments of this chain's normalisation: the same tensors, the same numbers."""
        given = {**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs}
        given.pop("input", None)
        if given.keys() != self.norm.keys():
            return False
        return all(
            value is self.norm[name] or (not isinstance(value, Tensor) and value == self.norm[name])
            for name, value in given.items()
        )

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
        self.norms: list[tuple[dict[str, Any], Any]] = []
        self.relus: dict[int, ReluCall] = {}  # by their input, if nothing has read that before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        relu = relu_call(func, args, kwargs)
        if relu is not None and not self.uses[id(relu.input)]:
            self.relus[id(relu.input)] = relu
        output = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _ASKING and not isinstance(output, Tensor):
            return output
        self.kept.append((args, kwargs, output))
        self.uses.update(id(t) for t in tensors((args, kwargs)))
        if func in CONVOLUTIONS and len(args) > 1 and isinstance(output, Tensor):
            self.convolutions[id(output)] = (args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
        elif func is F.batch_norm:
            self.norms.append(({**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs}, output))
        return output

    def chains(self) -> list[Chain]:
        """The chains that can be folded: each used once, nobody else reads what lies between, statistics are fixed."""
        found = []
        for norm, output in self.norms:
            weight, bias = self.convolutions.get(id(norm["input"]), (None, None))
            mean = norm.get("running_mean")
            if weight is None or mean is None or norm.get("training", False):
                continue
            if self.uses[id(norm["input"])] == self.uses[id(weight)] == self.uses[id(mean)] == 1:
                relu = self.relus.get(id(output))
                alone = relu is not None and (relu.in_place or self.uses[id(output)] == 1)
                ceiling = relu.ceiling if relu is not None and alone else None
                found.append(Chain(weight, bias, {k: v for k, v in norm.items() if k != "input"}, ceiling))
        return found


class Folded(TorchFunctionMode):
    """Inside it, the module that was watched runs folded. Empty (falsy) where there is nothing to fold.

    `fusing`: whether convolutions may be oneDNN's, which rectify what they write (only where no gradient is recorded)."""

    def __init__(self, chains: list[Chain], fusing: bool = False) -> None:
        super().__init__()
        self._chains = chains
        self._versions = [(t, t._version, t.data_ptr()) for chain in chains for t in chain.tensors()]
        # by weight: weight and bias of the folded convolution, and what is folded
        self.weights = {id(chain.weight): (*chain.folded(), chain) for chain in chains}
        # what is on its way to where nothing is left to do for it: by running mean, and by itself
        self._to_norm: dict[int, Tensor] = {}
        self._to_relu: dict[int, Tensor] = {}
        self._packed: dict[int, Tensor] = {}  # by weight, in the layout that is best for the input it first met
        self.fusing = fusing
        self.active = True  # off: calls pass as they are

    def __bool__(self) -> bool:
        return bool(self._chains)

    def current(self) -> bool:
        """Whether the module's values are still those that were folded."""
        return all(t._version == version and t.data_ptr() == place for t, version, place in self._versions)

    def __enter__(self) -> Folded:
        self.active = True
        self._to_norm.clear()  # what a pass that failed left
        self._to_relu.clear()
        return super().__enter__()  # type: ignore[no-any-return]

    def cuts(self, output: Tensor) -> bool:
        """Whether a tensor lies inside a folded chain, so that it is not what it seems."""
        return any(tensor is output for tensor in (*self._to_norm.values(), *self._to_relu.values()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.active:
            return func(*args, **kwargs)
        if func in CONVOLUTIONS and len(args) > 1:
            weight, bias, chain = self.weights.get(id(args[1]), (None, None, None))
            if weight is not None and bias is not None and chain is not None:
                return self._convolve(Convolution.called(func, args, kwargs), weight, bias, chain)
        elif func is F.batch_norm and len(args) > 1 and self._to_norm.pop(id(args[1]), None) is args[0]:
            return args[0]
        elif self._to_relu:
            relu = relu_call(func, args, kwargs)
            if relu is not None and self._to_relu.pop(id(relu.input), None) is not None:
                return relu.input
        return func(*args, **kwargs)

    def _convolve(self, call: Convolution, weight: Tensor, bias: Tensor, chain: Chain) -> Tensor:
        if self.fusing and not torch.is_grad_enabled() and call.given["input"].dim() == 4 and call.geometry():
            if id(weight) not in self._packed:
                self._packed[id(weight)] = packed(weight, call)
            output = pointwise(call, self._packed[id(weight)], bias, chain.ceiling)
            if chain.ceiling is not None:
                self._to_relu[id(output)] = output
        else:
            output = call.run(weight=weight, bias=bias)
        self._to_norm[id(chain.norm["running_mean"])] = output
        return output


@torch.no_grad()
def fold(module: nn.Module, x: Tensor) -> Folded:
    """Learn from one pass over `x` what can be folded in a module in eval mode; checked on `x` itself, and empty where
    the logits come out otherwise than by rounding, or where memory does not hold what the pass is watched by."""
    if next(module.buffers(), None) is None:  # no statistics, no normalisation: a transformer need not be watched
        return Folded([])
    watch = _Watch()
    try:
        with watch:
            plain = module(x.clone())
    except torch.OutOfMemoryError:
        return Folded([])
    chains = watch.chains()
    del watch  # which holds every tensor of the pass
    if not chains:
        return Folded([])
    for fusing in [True, False] if x.device.type == "cpu" and x.dtype in _FUSIBLE else [False]:
        folded = Folded(chains, fusing)
        try:
            with folded:
                other = module(x.clone())
        except (RuntimeError, AttributeError):  # this processor, or this torch, has no such operator
            if not fusing:
                raise
            continue
        if isinstance(plain, Tensor) and agree(plain, other, plain.dtype):
            return folded
    return Folded([])


def agree(plain: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits computed in this precision in another way are what they were, but for rounding."""
    return bool((other - plain).abs().max() <= _TOLERANCE[dtype] * (plain.max() - plain.min()))


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
