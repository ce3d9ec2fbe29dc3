"""Which window of pixels each value of a network's maps depends on, learnt by watching one pass.

Convolutions, poolings and padding widen windows; functions of each value by itself keep them; behind anything else a
value may depend on the whole picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.network.fast.fold import Folded
from visx.network.fast.pending import ASKING
from visx.network.isolation import hooked
from visx.network.tensors import tensors

ELEMENT = 32  # what writing an element costs, in multiplications

_WINDOWED = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
}
_PADDED = ("input", "pad", "mode")
_FORM = ASKING | {
    "__len__",
    "__set__",
    "is_floating_point",
    "is_complex",
    "element_size",
    "data_ptr",
    "get_device",
    "type",
}
_POINTWISE = {
    "relu", "relu6", "hardtanh", "clamp", "clip", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus",
    "sigmoid", "tanh", "hardswish", "hardsigmoid", "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul",
    "div", "truediv", "itruediv", "dropout", "contiguous", "clone",
}  # fmt: skip


class Side(NamedTuple):
    """Along one side, element i of a map reads the image's pixels from i * jump + low to i * jump + high."""

    jump: int = 1
    low: int = 0
    high: int = 0

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Side:
        reach = (kernel - 1) * dilation
        return Side(self.jump * stride, self.low - padding * self.jump, self.high + (reach - padding) * self.jump)

    def changed(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The elements of a map of this length that pixels from `start` to `stop` can change."""
        return max(-((self.high - start) // self.jump), 0), min((stop - 1 - self.low) // self.jump + 1, length)

    def needed(self, start: int, stop: int, length: int, size: int) -> tuple[int, int]:
        """The pixels, of `size`, that those elements read; the first a multiple of the jump, so that strides fall alike."""
        first, last = self.changed(start, stop, length)
        begin = max(min(start, first * self.jump + self.low), 0)
        return begin // self.jump * self.jump, min(max(stop, (last - 1) * self.jump + self.high + 1), size)


Sides = tuple[Side, Side]


@dataclass(frozen=True)
class Map:
    """The output of a module that ran once: its shape (B, K, h, w), its windows, and the work done by then."""

    module: nn.Module
    shape: torch.Size
    sides: Sides
    work: int


class Watch(TorchFunctionMode):
    """Records one pass: what each tensor depends on, when it was made and last read, and the work done by then.

    It holds every tensor, so that identities stay unique."""

    def __init__(self, folded: Folded | None) -> None:
        super().__init__()
        self.folded = folded
        self.kept: list[Tensor] = []
        self.sides: dict[int, Sides | None] = {}  # of all that depends on the image; None: it may read all of it
        self.made: dict[int, int] = {}  # when, in calls
        self.read: dict[int, int] = {}
        self.calls = self.work = 0
        self.left: int | None = None  # when Python first read a value that depends on the image
        self.exits: list[tuple[nn.Module, Tensor, int, int]] = []  # a module, its output, calls and work by then

    def maps(self, module: nn.Module, x: Tensor) -> list[Map]:
        """The maps that a pass over `x` could be cut at: each depends on `x` by windows alone, and what is computed after it
        depends on `x` through it alone."""
        self._made(x, (Side(), Side()))
        with ExitStack() as stack:
            for child in module.modules():
                stack.enter_context(hooked(child, self._leave))
            stack.enter_context(self)
            module(x)
        runs = Counter(id(child) for child, *_ in self.exits)
        found = []
        for child, output, calls, work in self.exits:
            sides = self.sides.get(id(output))
            if sides is None or output.dim() != 4 or runs[id(child)] > 1 or self._passed_by(output, calls):
                continue
            if self.left is None or self.left > calls:
                found.append(Map(child, output.shape, sides, work))
        return found

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not (self.folded is not None and self.folded.cuts(output)):
            self.exits.append((module, output, self.calls, self.work))

    def _passed_by(self, output: Tensor, calls: int) -> bool:
        """Whether anything but a module's output is read after it that was made before: a way around the cut."""
        return any(made <= calls < self.read.get(i, 0) for i, made in self.made.items() if i != id(output))

    def _made(self, tensor: Tensor, sides: Sides | None) -> None:
        self.kept.append(tensor)
        self.made.setdefault(id(tensor), self.calls)
        self.sides[id(tensor)] = sides

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        read = [t for t in tensors((args, kwargs)) if id(t) in self.made]
        if not read:
            return output
        if not any(True for _ in tensors(output)):
            if getattr(func, "__name__", "") == "__setitem__":
                self._written(args[0])
            elif getattr(func, "__name__", "") not in _FORM and self.left is None:
                self.left = self.calls
            return output
        self.calls += 1
        self.read.update((id(t), self.calls) for t in read)
        name = getattr(func, "__name__", "").strip("_")
        sides = self._through(name, read, args, kwargs)
        for tensor in tensors(output if isinstance(output, (tuple, list)) else (output,)):
            weight = args[1] if name in ("conv2d", "linear") and len(args) > 1 else None
            self.work += tensor.numel() * (ELEMENT + (weight[0].numel() if weight is not None else 0))
            known = sides if tensor is output else None
            if known is None and id(tensor) in self.made:
                self._written(tensor)
            self._made(tensor, known)
        return output

    def _written(self, tensor: Tensor) -> None:
        """Somebody wrote to a part of a tensor, or to all of it in a way that is not understood."""
        memory = tensor.untyped_storage().data_ptr()
        self.sides.update((id(t), None) for t in self.kept if t.untyped_storage().data_ptr() == memory)

    def _through(self, name: str, read: list[Tensor], args: Any, kwargs: Any) -> Sides | None:
        """What the output reads of the image, from what its inputs read."""
        inputs = [self.sides[id(t)] for t in read]
        sides = inputs[0]
        if sides is None:
            return None
        if name in _WINDOWED and len(read) == 1:
            return _windowed(sides, {**dict(zip(_WINDOWED[name], args, strict=False)), **kwargs})
        if name == "pad" and len(read) == 1:
            return _padded(sides, {**dict(zip(_PADDED, args, strict=False)), **kwargs})
        if name == "batch_norm" and len(read) == 1:
            training = args[5] if len(args) > 5 else kwargs.get("training", False)
            return sides if not training else None
        if name == "cat":
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return _together(inputs) if dim == 1 else None
        constants = (t for t in tensors((args, kwargs)) if id(t) not in self.made)
        return _together(inputs) if name in _POINTWISE and all(map(_uniform, constants)) else None


def _windowed(sides: Sides, given: dict[str, Any]) -> Sides | None:
    """Through a convolution or pooling."""
    kernel = _pair(given["weight"].shape[2:] if "weight" in given else given["kernel_size"])
    stride = _pair(given.get("stride") or (1 if "weight" in given else kernel))
    padding, dilation = given.get("padding", 0), _pair(given.get("dilation", 1))
    if isinstance(padding, str):
        return None
    high, wide = zip(kernel, stride, _pair(padding), dilation, strict=True)
    return sides[0].through(*high), sides[1].through(*wide)


def _padded(sides: Sides, given: dict[str, Any]) -> Sides | None:
    """Through constant padding of the two sides."""
    pad = given["pad"]
    if given.get("mode", "constant") != "constant" or len(pad) != 4 or min(pad) < 0:
        return None
    return sides[0].through(1, 1, pad[2], 1), sides[1].through(1, 1, pad[0], 1)


def _together(inputs: Sequence[Sides | None]) -> Sides | None:
    """What is read by an element made of the elements in one place of several maps."""
    known = [sides for sides in inputs if sides is not None]
    high, wide = zip(*known, strict=True)
    if len(known) < len(inputs) or any(len({side.jump for side in each}) > 1 for each in (high, wide)):
        return None
    return _widest(high), _widest(wide)


def _widest(sides: Sequence[Side]) -> Side:
    return Side(sides[0].jump, min(side.low for side in sides), max(side.high for side in sides))


def _uniform(constant: Tensor) -> bool:
    """Whether a constant is the same all over a map."""
    return constant.numel() == 1 or (constant.dim() > 2 and constant.shape[-2:] == (1, 1))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
