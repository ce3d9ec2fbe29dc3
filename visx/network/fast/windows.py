"""Which window of pixels each value of a network's maps depends on, read from the record of a pass.

Convolutions, poolings and padding widen windows; functions of each value by itself keep them; behind anything else a
value may depend on the whole picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from visx.network.fast.fold import Folded
from visx.network.fast.onednn import CONVOLUTIONS
from visx.network.fast.pending import ASKING
from visx.network.record import Call, ModuleRun, Record, Value, values
from visx.network.rules import RELUS

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


class Windows:
    """What each tensor of a closed record depends on, when it was made and last read, and the work done by then. `folded` is
    what runs folded of the network: inside its chains there is nothing to cut at."""

    def __init__(self, record: Record, folded: Folded | None) -> None:
        self.work = 0
        self._sides: dict[Value, Sides | None] = {}  # of all that depends on the image; None: it may read all of it
        self._made: dict[Value, int] = {}  # when, in calls
        self._read: dict[Value, int] = {}
        self._calls = 0  # that read something which depends on the image
        self._left: int | None = None  # when Python first read a value that depends on the image
        self._ends: list[tuple[ModuleRun, int, int]] = []  # runs of modules, calls and work by then
        self._inside = _inside(record, folded) if folded else {}
        if record.picture is not None:
            self._make(record.picture, (Side(), Side()))
        runs = iter(record.runs)  # in the order of their ends
        run = next(runs, None)
        for place, call in enumerate([*record.calls, None]):
            while run is not None and run.ended <= place:
                self._ends.append((run, self._calls, self.work))
                run = next(runs, None)
            if call is not None:
                self._follow(call)

    def maps(self) -> list[Map]:
        """The maps that a pass could be cut at: each depends on the image by windows alone, and what is computed after it
        depends on the image through it alone."""
        times = Counter(run.name for run, *_ in self._ends)
        result = []
        for run, calls, work in self._ends:
            if run.shape is None or len(run.shape) != 4 or times[run.name] > 1:
                continue
            output = run.outputs[0]
            sides = self._sides.get(output)
            if sides is None or run.ended <= self._inside.get(output, -1) or self._passed_by(output, calls):
                continue
            if self._left is None or self._left > calls:
                result.append(Map(run.module, output.shape, sides, work))
        return result

    def _passed_by(self, output: Value, calls: int) -> bool:
        """Whether anything but a module's output is read after it that was made before: a way around the cut."""
        return any(made <= calls < self._read.get(v, 0) for v, made in self._made.items() if v is not output)

    def _make(self, value: Value, sides: Sides | None) -> None:
        self._made.setdefault(value, self._calls)
        self._sides[value] = sides

    def _follow(self, call: Call) -> None:
        """Take note of one call."""
        read = [value for value in values((call.args, call.kwargs)) if value in self._made]
        if not read:
            return
        if next(values(call.output), None) is None:
            if call.name == "__setitem__":
                self._written(call.args[0])
            elif call.name not in _FORM and self._left is None:
                self._left = self._calls
            return
        self._calls += 1
        self._read.update((value, self._calls) for value in read)
        name = call.name.strip("_")
        sides = self._through(name, read, call.args, call.kwargs)
        for value in values(call.output):
            weight = call.args[1] if name in ("conv2d", "linear") and len(call.args) > 1 else None
            self.work += value.shape.numel() * (ELEMENT + (weight.shape[1:].numel() if weight is not None else 0))
            known = sides if value is call.output else None
            if known is None and value in self._made:
                self._written(value)
            self._make(value, known)

    def _written(self, value: Value) -> None:
        """Somebody wrote to a part of a tensor, or to all of it in a way that is not understood."""
        self._sides.update((other, None) for other in self._made if other.memory == value.memory)

    def _through(self, name: str, read: list[Value], args: Any, kwargs: Any) -> Sides | None:
        """What the output reads of the image, from what its inputs read."""
        inputs = [self._sides[value] for value in read]
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
        constants = (value for value in values((args, kwargs)) if value not in self._made)
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


def _inside(record: Record, folded: Folded) -> dict[Value, float]:
    """The tensors inside of folded chains, which are not what they seem, and by how many calls they are: outputs of the
    convolutions, and of normalisations whose ReLU the convolution applies (until that ReLU, where it works in place)."""
    chains = {id(chain.weight): chain for chain in folded.chains}
    ends: dict[Value, bool] = {}  # outputs of convolutions, and whether their ReLU is applied
    inside: dict[Value, float] = {}
    for number, call in enumerate(record.calls, 1):
        if not isinstance(call.output, Value) or not call.args:
            continue
        chain = chains.get(id(call.args[1].tensor)) if call.func in CONVOLUTIONS and len(call.args) > 1 else None
        if chain is not None:
            ends[call.output] = folded.fusing and chain.ceiling is not None
            inside[call.output] = math.inf
        elif call.func is F.batch_norm and ends.get(call.args[0]):
            inside[call.output] = math.inf
        elif call.func in RELUS and call.output is call.args[0] and inside.get(call.output) == math.inf:
            inside[call.output] = number - 1
    return inside


def _uniform(constant: Value) -> bool:
    """Whether a constant is the same all over a map."""
    return constant.shape.numel() == 1 or (len(constant.shape) > 2 and constant.shape[-2:] == (1, 1))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
