"""Gradients of a network as it is written: every ReLU passes what it passes in the plain forward pass, to the last bit.

A gradient hangs on the side of zero that each ReLU's input lies on. One that rounding moves across changes a map visibly
in a comparison (Pearson 0.9997 for one of some dozens of photographs), and faster ways to run a network round otherwise:
folded normalisations, and on a CPU oneDNN's convolutions in the channels-last layout, which sum all of a position's terms
in a row where those in the plain layout sum them in blocks (errors 2 to 5 times as large). So here

- normalisations run as they are, and only the backward pass, where rounding stays rounding, is that of the convolution
  with the normalisation folded in;
- a channels-last network runs those convolutions whose sums come out otherwise in the plain layout. The others stay as
  they are: where a block holds all terms, and 1 x 1 convolutions over large maps. (Measured on AVX-512, for torchvision's
  networks: all outputs up to the global pooling equal those of the plain layout.)

It costs some 10 % of a pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.convolutions import CONVOLUTIONS, Convolution
from visx.folding import Folded

_BLOCK = 16  # input channels that are summed at a time in the plain layout
_LARGE = 28 * 28  # positions of a map


class AsWritten(TorchFunctionMode):
    """Inside it a network runs forwards as written and backwards folded. `mixed`: whether it is a channels-last network
    whose convolutions sum otherwise than those in the plain layout."""

    def __init__(self, folded: Folded, mixed: bool) -> None:
        super().__init__()
        self.folded, self._mixed = folded, mixed
        self._plain: dict[nn.Parameter, tuple[int, Tensor]] = {}  # weights in the plain layout, and of which version
        self._to_norm: dict[int, Tensor] = {}  # outputs whose backward pass has the normalisation's in it

    def __enter__(self) -> AsWritten:
        self._to_norm.clear()  # what a pass that failed left
        return super().__enter__()  # type: ignore[no-any-return]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and len(args) > 1:
            return self._convolve(Convolution.called(func, args, kwargs))
        if func is F.batch_norm and len(args) > 1 and self._to_norm.pop(id(args[1]), None) is args[0]:
            return _Normalise.apply(args[0], func, args[1:], kwargs)
        return func(*args, **kwargs)

    def _convolve(self, call: Convolution) -> Tensor:
        weight, _, chain = self.folded.weights.get(id(call.given["weight"]), (None, None, None))
        if weight is None or chain is None or call.geometry() is None:
            return self._forward(call)
        output: Tensor = _Convolve.apply(call.given["input"], call, self._forward, weight)
        self._to_norm[id(chain.norm["running_mean"])] = output
        return output

    def _forward(self, call: Convolution) -> Tensor:
        if not self._mixed or not _sums_otherwise(call):
            return call.run()
        x, weight = call.given["input"].contiguous(), call.given["weight"]
        version, plain = self._plain.get(weight, (None, weight))
        if version != weight._version:
            plain = weight.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(weight, nn.Parameter):  # others may be made anew in every pass
                self._plain[weight] = weight._version, plain
        return call.run(input=x, weight=plain).contiguous(memory_format=torch.channels_last)


def _sums_otherwise(call: Convolution) -> bool:
    """Whether a convolution's sums in channels-last may differ from those in the plain layout."""
    x, weight, geometry = call.given["input"], call.given["weight"], call.geometry()
    if geometry is None or x.dim() != 4 or weight.shape[1] < _BLOCK:
        return False
    positions = math.prod(size // step for size, step in zip(x.shape[2:], geometry[0], strict=True))
    return weight.shape[2:].numel() > 1 or positions < _LARGE


class _Convolve(torch.autograd.Function):
    """A convolution whose backward pass is that of the same one with another weight: its own times the scale of the
    normalisation behind it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Convolution, run: Any, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.form = call.geometry(), (x.shape, x.stride())
        output: Tensor = run(call)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        x = grad.new_empty_strided(*ctx.form)  # the input, of which only the form counts
        rest = (stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False])
        (found, _, _) = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)
        return found, None, None, None


class _Normalise(torch.autograd.Function):
    """A normalisation whose backward pass is in that of the convolution before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:  # type: ignore[override]
        output: Tensor = func(x, *args, **kwargs)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad, None, None, None
