"""Gradients of a network as it is written: every ReLU passes what it passes in the plain forward pass, to the last bit.

A gradient depends on the sign of each ReLU's input. If rounding flips one sign, the map changes visibly in a comparison
(a Pearson correlation of 0.9997, for one of some dozens of photographs). Faster ways to run a network round differently:
folded normalisations do, and so do, on a CPU, oneDNN's convolutions in the channels-last layout: they add up all terms of
a position one after another, where those in the plain layout add them up in blocks (errors are 2 to 5 times as large).
Therefore

- normalisations run forwards as they are. Only the backward pass, in which rounding flips no sign, is that of the
  convolution with the normalisation folded in;
- a channels-last network runs those convolutions in the plain layout whose sums would differ otherwise. Where a block
  holds all terms, and for 1 x 1 convolutions over large maps, both layouts were found to give the same sums.
  (Measured with AVX-512 on torchvision's networks: all outputs up to the first global pooling equal those of the plain
  layout, for one image at a time and with the same number of threads. The poolings of squeeze-and-excitation differ by
  1e-7.)

This costs some 10 % of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.network.fast.fold import Chain, Folded
from visx.network.fast.onednn import CONVOLUTIONS, Convolution, Geometry, packed, pointwise
from visx.network.fast.pending import Astray, Pending

_BLOCK = 16  # input channels that are summed at a time in the plain layout
_LARGE = 28 * 28  # positions of a map


class AsWritten(TorchFunctionMode):
    """Inside it a network runs forwards as written and backwards folded. `mixed`: whether it is a channels-last network
    whose convolutions add up their terms in another order than those in the plain layout."""

    def __init__(self, folded: Folded, mixed: bool) -> None:
        super().__init__()
        self.folded, self._mixed = folded, mixed
        self._ways: dict[Any, _Way] = {}  # by what a convolution's sums depend on
        self._pending = Pending()  # outputs of convolutions, to be read by a normalisation; purpose: _Link
        self.linking = True  # off: the backward pass is as written, too

    def __exit__(self, *error: Any) -> None:
        self._pending.clear()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._pending:
            if func is F.batch_norm and args:
                link = self._pending.purpose(args[0])
                if link is not None and link.chain.ends_in(args, kwargs):
                    link.closed = True
                    self._pending.spend(args[0])
                    return _Normalised.apply(args[0], link.chain.norm)
            for tensor in self._pending.read_by(func, args, kwargs):
                if self._pending.purpose(tensor) is None:
                    raise Astray  # it was normalised in place
                self._pending.drop(tensor)  # the normalisation that may come differentiates by itself
        if func in CONVOLUTIONS and len(args) > 1:
            return self._convolve(Convolution.called(func, args, kwargs))
        return func(*args, **kwargs)

    def _convolve(self, call: Convolution) -> Tensor:
        step = self.folded.steps.get(id(call.given["weight"]))
        way = self._way(call, step is not None)
        if step is None or way.geometry is None or not self.linking:
            return way.run(call)
        link = _Link(step.chain)
        output: Tensor = _Convolved.apply(call.given["input"], call, way, step.weight, link)
        self._pending.add(output, link)
        return output

    def _way(self, call: Convolution, chained: bool) -> _Way:
        x, weight = call.given["input"], call.given["weight"]
        key = id(weight), x.shape[1:], len(x) > 1, torch.get_num_threads()
        way = self._ways.get(key)
        if way is None or not way.holds(call):
            way = _Way(call, chained) if self._mixed else _Way(call)
            if isinstance(weight, nn.Parameter):  # others may be made anew in every pass
                self._ways[key] = way
        return way


class _Link:
    """From a convolution to the normalisation that was found behind it: `closed` once that has come in this pass."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.closed = False


class _Way:
    """How a convolution of this weight and size is computed: `run`, as it is called or, where `packable` is given, so that
    its sums are those of a single image in the plain layout; `packable` says whether no gradient is recorded through it."""

    def __init__(self, call: Convolution, packable: bool | None = None) -> None:
        self.run: Callable[[Convolution], Tensor] = Convolution.run
        self.geometry = call.geometry()
        self._weight, self._version = call.given["weight"], call.given["weight"]._version
        if packable is not None and self.geometry is not None and call.given["input"].dim() == 4:
            self._choose(call, self.geometry, packable)

    def holds(self, call: Convolution) -> bool:
        """Whether this is still the same convolution of the same values."""
        weight = call.given["weight"]
        return weight is self._weight and weight._version == self._version and call.geometry() == self.geometry

    @torch.no_grad()
    def _choose(self, call: Convolution, geometry: Geometry, packable: bool) -> None:
        """Choose the fastest way that gives these sums. Which ways do depends on the processor and on all sizes, so they
        are tried on noise. Terms of several blocks are never added up one after another."""
        x, weight = call.given["input"], call.given["weight"]
        plain = weight.clone(memory_format=torch.contiguous_format)
        if not isinstance(weight, nn.Parameter):  # it may be made anew in every pass, and is not worth a trial
            self.run = _plain(plain)
            return
        ways: list[Callable[[Convolution], Tensor]] = [_plain(plain)]
        blocks, positions = weight.shape[1] // _BLOCK, x.shape[2:].numel() // math.prod(geometry[0])
        if not blocks or (weight.shape[2:].numel() == 1 and positions >= _LARGE):
            ways.insert(0, Convolution.run)
            with suppress(RuntimeError, AttributeError):  # this processor, or this torch, has no such operator
                ways[:0] = [_packed(packed(weight, call), geometry)] if packable else []
        self.run = _one_by_one(_plain(plain))
        noise = torch.empty_like(x[:2]).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        tried = Convolution(call.func, {**call.given, "input": noise})
        wanted = self.run(tried)
        for way in ways:
            with suppress(RuntimeError):
                if torch.equal(way(tried), wanted):
                    self.run = way
                    return


def _packed(weight: Tensor, geometry: Geometry) -> Callable[[Convolution], Tensor]:
    return lambda call: pointwise(call.given["input"], weight, call.given.get("bias"), geometry)


def _plain(weight: Tensor) -> Callable[[Convolution], Tensor]:
    """In the plain layout, for which the weight is given."""

    def run(call: Convolution) -> Tensor:
        x = call.given["input"].contiguous()
        return call.run(input=x, weight=weight).contiguous(memory_format=torch.channels_last)

    return run


def _one_by_one(way: Callable[[Convolution], Tensor]) -> Callable[[Convolution], Tensor]:
    def run(call: Convolution) -> Tensor:
        images = (Convolution(call.func, {**call.given, "input": x}) for x in call.given["input"].split(1))
        return torch.cat([way(image) for image in images])

    return run


class _Convolved(torch.autograd.Function):
    """A convolution whose backward pass is that of the same one with another weight, its own times the scale of the
    normalisation behind it, where that normalisation has come."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, call: Convolution, way: _Way, weight: Tensor, link: _Link
    ) -> Tensor:
        ctx.save_for_backward(weight, call.given["weight"])
        ctx.geometry, ctx.form, ctx.link = way.geometry, (x.shape, x.stride()), link
        return way.run(call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        folded, own = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        x = grad.new_empty_strided(*ctx.form)  # the input, of which only the form counts
        rest = (stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False])
        weight = folded if ctx.link.closed else own
        (found, _, _) = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)
        return found, None, None, None, None


class _Normalised(torch.autograd.Function):
    """F.batch_norm in eval mode, whose backward pass is in that of the convolution before it. On a CPU in place, the same to
    the last bit: memory that is new to a process costs a large map several times as much as its arithmetic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: dict[str, Any]) -> Tensor:  # type: ignore[override]
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return F.batch_norm(x, **norm)
        values = (norm.get("weight"), norm.get("bias"), norm["running_mean"], norm["running_var"])
        nothing = {"save_mean": x.new_empty(0), "save_invstd": x.new_empty(0)}  # which only training fills
        normalised = (
            x.data
        )  # another tensor of the same memory, so that who reads `x` behind it is told from who reads this
        torch.ops.aten.native_batch_norm.out(
            normalised, *values, False, 0.0, norm.get("eps", 1e-5), out=normalised, **nothing
        )
        return normalised

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad, None
