"""Local passes: scores of an image with a patch hidden, computing early layers only where the patch can change them.

Until something looks at the whole picture, a value of a convolutional network reads a window of pixels, so a copy that
differs from the image inside a patch has the image's own feature maps but for a box. Up to one module early in the network,
the *cut*, copies go as crops around their patches; there the middle of a crop's map is pasted into the map of the whole
image, computed once, and all that follows runs at full size. It is exact but for rounding: what the patch can reach lies
where no crop's edge is felt, unless that edge is the image's own.

Nakandala, Kumar & Papakonstantinou 2019 (Krypton, "Incremental and Approximate Inference for Faster Occlusion-based Deep
CNN Explanations", SIGMOD 2019) cut every layer's input to what changed and put its output back; one cut needs no layer
rewritten (crops take a few pixels more, late layers, where boxes cover all, are left whole), and none of its
approximations is made.

Where the windows lie is learnt from one watched pass, in float32 whatever the precision (a half's rounding would hide what
a patch does), and tried on a few patches. The cut is chosen by counting operations, never by a clock: which way a copy goes
decides how it is rounded. There is none behind what Python reads of the image's values, because a crop's are others, and
none where the module has hooks, which shall see whole maps.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.network.fast.fold import Folded, observed
from visx.network.fast.pending import ASKING, tensors
from visx.network.isolation import hooked
from visx.network.network import Network
from visx.scoring import Box

WORTHWHILE = 0.15  # the part of a pass that a cut must save
TRIES = 3  # cuts that are tried before the plain way is taken for good
ELEMENT = 32  # what writing an element costs, in multiplications
PLANS = 16  # that are remembered
ROUNDING = 1e-4  # the part of the logits' range that crops may miss
SAME = 0.01  # the part of what two patches differ by that they may miss; if it is more, float64 decides

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
class Plan:
    """A cut, the size of its map (h, w), and the size of all crops of an image (H, W)."""

    module: nn.Module
    sides: Sides
    map: tuple[int, int]
    image: tuple[int, int]
    crop: tuple[int, int]

    @staticmethod
    def of(module: nn.Module, sides: Sides, map: torch.Size, image: torch.Size, boxes: Sequence[Box]) -> Plan:
        """Crops as large as the largest need, and as much smaller than the image as whole jumps: what a stride leaves over
        at the far side, and so what "same" padding adds, is as in the image."""
        crop = []
        for n, side in enumerate(sides):
            ends = {side.needed(box[n], box[n + 2], map[n], image[n]) for box in boxes}
            need = max(end - begin for begin, end in ends)
            crop.append(image[n] - (image[n] - need) // side.jump * side.jump)
        return Plan(module, sides, (map[0], map[1]), (image[0], image[1]), (crop[0], crop[1]))

    def origin(self, box: Box) -> tuple[int, int]:
        """Where a copy's crop begins: inside the image, so that an edge of a crop is the image's or far from the patch."""
        begins = [side.needed(box[n], box[n + 2], self.map[n], self.image[n])[0] for n, side in enumerate(self.sides)]
        return min(begins[0], self.image[0] - self.crop[0]), min(begins[1], self.image[1] - self.crop[1])

    def crops(self, image: Tensor, fill: Tensor, boxes: Sequence[Box]) -> Tensor:
        """(N, C, H, W) of the crop's size: the image (C, H, W) around each box, the box filled."""
        height, width = self.crop
        crops = image.new_empty(len(boxes), len(image), height, width)
        for crop, box in zip(crops, boxes, strict=True):
            (y, x), (top, left, bottom, right) = self.origin(box), box
            crop.copy_(image[:, y : y + height, x : x + width])
            crop[:, top - y : bottom - y, left - x : right - x] = fill[:, top:bottom, left:right]
        return crops

    def pasted(self, clean: Tensor, crops: Tensor, boxes: Sequence[Box]) -> Tensor:
        """The cut's maps of the whole copies: the clean image's (1, K, h, w), and what each box can change of its crop's."""
        layout = (
            torch.channels_last if crops.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        maps = clean.expand(len(crops), -1, -1, -1).clone(memory_format=layout)
        for whole, crop, box in zip(maps, crops, boxes, strict=True):
            into, of = [slice(None)], [slice(None)]
            for n, (side, origin) in enumerate(zip(self.sides, self.origin(box), strict=True)):
                first, last = side.changed(box[n], box[n + 2], self.map[n])
                into.append(slice(first, last))
                of.append(slice(first - origin // side.jump, last - origin // side.jump))
            whole[tuple(into)] = crop[tuple(of)]
        return maps


class Local:
    """Scores copies of one image by crops."""

    def __init__(self, network: Network, plan: Plan, image: Tensor) -> None:
        self._network, self._plan, self._image = network, plan, image
        self._clean = network.run_folded(image.shape, lambda _: network.output_of(plan.module, image[None]))

    def logits(self, fill: Tensor, boxes: Sequence[Box]) -> Tensor:
        """(N, classes) of the image with each box filled, without gradients."""
        plan = self._plan

        def paste(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return plan.pasted(self._clean, output, boxes)

        with hooked(plan.module, paste):
            return self._network.scores_of(plan.crops(self._image, fill, boxes))


def local(network: Network, image: Tensor, boxes: Sequence[Box]) -> Local | None:
    """The local way to score an image (C, H, W) with one of `boxes` filled; None where there is none worth its while."""
    if network.folding == "none" or network.behaviour.one_row:
        return None
    key, plans = (image.shape, tuple(boxes)), network.local_plans
    if key not in plans:
        while len(plans) >= PLANS:
            del plans[next(iter(plans))]
        plans[key] = None if observed(network.module) else _learn(network, image.shape, boxes)
    plan = plans[key]
    return None if plan is None else Local(network, plan, image)


@torch.no_grad()
def _learn(network: Network, shape: torch.Size, boxes: Sequence[Box]) -> Plan | None:
    """The best cut that gives a noise image's copies the logits they have, or None."""
    exact = network if network.dtype in (torch.float32, torch.float64) else _copied(network, torch.float32)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    x = exact.prepare(image[None])
    plans = exact.run_folded(shape, lambda folded: _Watch(folded).plans(exact.module, x, boxes))
    names = {id(module): name for name, module in exact.module.named_modules()}
    finer: Network | None = None
    for plan in plans[:TRIES]:
        holds = _holds(exact, plan, image, boxes)
        if holds is None:
            finer = finer or _copied(network, torch.float64)
            holds = _holds(
                finer, replace(plan, module=finer.module.get_submodule(names[id(plan.module)])), image, boxes
            )
        if holds:
            return replace(plan, module=network.module.get_submodule(names[id(plan.module)]))
    return None


def _copied(network: Network, dtype: torch.dtype) -> Network:
    """The same network in another precision."""
    module = copy.deepcopy(network.module).to(dtype)
    return Network(
        module, channels_last=network.channels_last, folding=network.folding, outputs=lambda: network.outputs
    )


def _holds(network: Network, plan: Plan, image: Tensor, boxes: Sequence[Box]) -> bool | None:
    """Whether crops around a patch in the middle and one at the end, in one batch, give the logits of whole copies, one by
    one: as closely as it takes to tell those two patches apart. None where rounding is too large to say."""
    middle = boxes[len(boxes) // 2]
    some = [middle if middle != boxes[-1] else boxes[0], boxes[-1]]
    fill = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    wholes = image.expand(len(some), *image.shape).clone()
    for whole, (top, left, bottom, right) in zip(wholes, some, strict=True):
        whole[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
    try:
        got = Local(network, plan, image).logits(fill, some)
        want = torch.cat([network.scores_of(whole[None]) for whole in wholes])
    except Exception:  # what lies before the cut may take one size only
        return False
    missed = (got - want).abs().max()
    if missed > ROUNDING * (want.max() - want.min()):
        return False
    if missed <= SAME * (want[0] - want[1]).abs().max():
        return True
    return None if network.dtype != torch.float64 else False


class _Watch(TorchFunctionMode):
    """Records one pass: what each tensor reads of the image, when it was made and last read, and the work done by then.

    Holds every tensor, so that identities stay unique."""

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

    def plans(self, module: nn.Module, x: Tensor, boxes: Sequence[Box]) -> list[Plan]:
        """Cuts worth their while, the best first."""
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
            if self.left is not None and self.left <= calls:
                continue
            plan = Plan.of(child, sides, output.shape[2:], x.shape[2:], boxes)
            saved = work * (1 - math.prod(plan.crop) / math.prod(plan.image)) - ELEMENT * output.numel()
            found.append((saved, plan))
        worthwhile = [(saved, plan) for saved, plan in found if saved > WORTHWHILE * self.work]
        return [plan for _, plan in sorted(worthwhile, key=lambda each: -each[0])]

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
