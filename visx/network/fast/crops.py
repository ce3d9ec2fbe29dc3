"""Scores of copies of an image with a patch hidden, where early layers compute only what the patch can change.

Until a layer looks at the whole picture, each value of a convolutional network depends on a window of pixels. A copy that
differs from the image inside a patch alone therefore has the image's own maps, but for a rectangle. One module early in the
network is the *cut*: up to it, copies run as crops around their patches; there, the middle of a crop's map is pasted into
the map of the whole image, which is computed once; behind it, all runs at full size. The scores are exact but for
rounding: no crop's edge has an effect on what the patch can change, unless that edge is the image's own.

Nakandala, Kumar & Papakonstantinou 2019 (Krypton, "Incremental and Approximate Inference for Faster Occlusion-based Deep
CNN Explanations", SIGMOD 2019) cut every layer's input to what changed and put its output back. With one cut no layer is
rewritten; crops take a few pixels more, and late layers, where such rectangles cover all, run whole. None of the paper's
approximations is made.

The windows are read from the record of one pass (visx/network/fast/windows.py), in float32 whatever the precision, because
the rounding of half precision would hide what a patch does; a plan is tried on two patches before it is used. The cut is
chosen by counting operations, never by a clock, because the way that a copy goes decides how it is rounded. No cut lies
behind a place where Python reads values that depend on the image, since a crop has others, and none is made where the
module has hooks, which are to see whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from visx.network.fast.fold import Folded
from visx.network.fast.lanes import side_by_side
from visx.network.fast.passes import Passes
from visx.network.fast.windows import ELEMENT, Sides, Windows
from visx.network.isolation import hooked
from visx.network.record import Record
from visx.network.scorer import Patch

WORTHWHILE = 0.15  # the part of a pass that a cut must save
TRIES = 3  # cuts that are tried before the plain way is taken for good
ROUNDING = 1e-4  # the part of the logits' range that crops may miss
SAME = 0.01  # the part of what two patches differ by that they may miss; if it is more, float64 decides


@dataclass(frozen=True)
class Plan:
    """A cut, the size of its map (h, w), and the size of all crops of an image (H, W)."""

    module: nn.Module
    sides: Sides
    map: tuple[int, int]
    image: tuple[int, int]
    crop: tuple[int, int]

    @staticmethod
    def of(module: nn.Module, sides: Sides, map: torch.Size, image: torch.Size, patches: Sequence[Patch]) -> Plan:
        """Crops as large as the largest need, and as much smaller than the image as whole jumps: what a stride leaves over
        at the far side, and so what "same" padding adds, is as in the image."""
        crop = []
        for n, side in enumerate(sides):
            ends = {side.needed(patch[n], patch[n + 2], map[n], image[n]) for patch in patches}
            need = max(end - begin for begin, end in ends)
            crop.append(image[n] - (image[n] - need) // side.jump * side.jump)
        return Plan(module, sides, (map[0], map[1]), (image[0], image[1]), (crop[0], crop[1]))

    def origin(self, patch: Patch) -> tuple[int, int]:
        """Where a copy's crop begins: inside the image, so that an edge of a crop is the image's or far from the patch."""
        begins = [
            side.needed(patch[n], patch[n + 2], self.map[n], self.image[n])[0] for n, side in enumerate(self.sides)
        ]
        return min(begins[0], self.image[0] - self.crop[0]), min(begins[1], self.image[1] - self.crop[1])

    def crops(self, image: Tensor, fill: Tensor, patches: Sequence[Patch]) -> Tensor:
        """(N, C, H, W) of the crop's size: the image (C, H, W) around each patch, the patch filled."""
        height, width = self.crop
        crops = image.new_empty(len(patches), len(image), height, width)
        for crop, patch in zip(crops, patches, strict=True):
            (y, x), (top, left, bottom, right) = self.origin(patch), patch
            crop.copy_(image[:, y : y + height, x : x + width])
            crop[:, top - y : bottom - y, left - x : right - x] = fill[:, top:bottom, left:right]
        return crops

    def pasted(self, clean: Tensor, crops: Tensor, patches: Sequence[Patch]) -> Tensor:
        """The cut's maps of the whole copies: the clean image's (1, K, h, w), and what each patch can change of its crop's."""
        layout = (
            torch.channels_last if crops.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        maps = clean.expand(len(crops), -1, -1, -1).clone(memory_format=layout)
        for whole, crop, patch in zip(maps, crops, patches, strict=True):
            into, of = [slice(None)], [slice(None)]
            for n, (side, origin) in enumerate(zip(self.sides, self.origin(patch), strict=True)):
                first, last = side.changed(patch[n], patch[n + 2], self.map[n])
                into.append(slice(first, last))
                of.append(slice(first - origin // side.jump, last - origin // side.jump))
            whole[tuple(into)] = crop[tuple(of)]
        return maps


class Local:
    """Scores copies of one image by crops."""

    def __init__(self, network: Passes, plan: Plan, image: Tensor) -> None:
        self._network, self._plan, self._image = network, plan, image
        self._clean = network.fast.folded(
            image.shape, lambda _, layout: network.output_of(plan.module, image[None], layout)
        )

    def logits(self, fill: Tensor, patches: Sequence[Patch]) -> Tensor:
        """(N, classes) of the image with each patch filled, without gradients."""
        plan = self._plan

        def paste(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return plan.pasted(self._clean, output, patches)

        with hooked(plan.module, paste):
            return self._network.scores_of(plan.crops(self._image, fill, patches))

    def on(self, network: Passes) -> Local:
        """The same with a twin of the network."""
        names = {id(module): name for name, module in self._network.module.named_modules()}
        module = network.module.get_submodule(names[id(self._plan.module)])
        return Local(network, replace(self._plan, module=module), self._image)


class LocalLanes:
    """Scores copies of one image by crops, parts of a batch side by side."""

    def __init__(self, lanes: Sequence[Local]) -> None:
        self._lanes = lanes

    def logits(self, fill: Tensor, patches: Sequence[Patch]) -> Tensor:
        """(N, classes) of the image with each patch filled, without gradients."""
        return side_by_side(self._lanes, len(patches), lambda lane, part: lane.logits(fill, patches[part]))


@torch.no_grad()
def learn(network: Passes, shape: torch.Size, patches: Sequence[Patch]) -> Plan | None:
    """The best cut that gives a noise image's copies the logits they have; None where none does, or none is worth its
    while."""
    exact = network if network.dtype in (torch.float32, torch.float64) else network.converted(torch.float32)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    record = exact.record(shape, operations=False)
    plans = exact.fast.folded(shape, lambda folded, _: _plans(folded, record, patches))
    names = {id(module): name for name, module in exact.module.named_modules()}
    finer: Passes | None = None
    for plan in plans[:TRIES]:
        holds = _holds(exact, plan, image, patches)
        if holds is None:
            finer = finer or network.converted(torch.float64)
            holds = _holds(
                finer, replace(plan, module=finer.module.get_submodule(names[id(plan.module)])), image, patches
            )
        if holds:
            return replace(plan, module=network.module.get_submodule(names[id(plan.module)]))
    return None


@torch.no_grad()
def same_scores(network: Passes, plan: Plan, image: Tensor, patches: Sequence[Patch]) -> bool:
    """Whether a plan gives an image's copies the scores that they have, as far as rounding lets that be told."""
    return _holds(network, plan, image, patches) is not False


def _plans(folded: Folded | None, record: Record, patches: Sequence[Patch]) -> list[Plan]:
    """Cuts that are worth their while, the best first."""
    if record.picture is None:
        return []
    windows = Windows(record, folded)
    cuts = []
    for cut in windows.maps():
        plan = Plan.of(cut.module, cut.sides, cut.shape[2:], record.picture.shape[2:], patches)
        saved = cut.work * (1 - math.prod(plan.crop) / math.prod(plan.image)) - ELEMENT * cut.shape.numel()
        cuts.append((saved, plan))
    worthwhile = [(saved, plan) for saved, plan in cuts if saved > WORTHWHILE * windows.work]
    return [plan for _, plan in sorted(worthwhile, key=lambda each: -each[0])]


def _holds(network: Passes, plan: Plan, image: Tensor, patches: Sequence[Patch]) -> bool | None:
    """Whether crops around a patch in the middle and one at the end, in one batch, give the logits of whole copies, one by
    one: as closely as it takes to tell those two patches apart. None where rounding is too large to say."""
    middle = patches[len(patches) // 2]
    some = [middle if middle != patches[-1] else patches[0], patches[-1]]
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
