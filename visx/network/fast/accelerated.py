"""The faster ways of one network to the answers that it gives as written, behind one face.

- `scores`: normalisations, and the ReLUs behind them, folded into convolutions (visx/network/fast/fold.py), which on a
  CPU are oneDNN's (visx/network/fast/onednn.py).
- `gradients`: forward as written to the last bit, backward folded (visx/network/fast/exact.py); or folded both ways where
  many gradients are summed.
- `until`: folded before a layer, as written behind it.
- `patched`: copies that differ in a patch run their first layers as crops (visx/network/fast/crops.py).
- Passes of many copies go through twins of the network side by side (visx/network/fast/lanes.py).

Each is exact but for rounding. What is learnt of a network refers to its values by reference and version, so that it is
learnt anew when they have changed. `VISX_PLAIN=1` turns all of it off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from visx.network.fast.crops import Local, LocalLanes, Plan, learn, same_scores
from visx.network.fast.exact import AsWritten
from visx.network.fast.fold import Folded, agree, fold
from visx.network.fast.lanes import MOST_LANES, side_by_side, twin
from visx.network.fast.passes import Passes, plain
from visx.network.fast.pending import Astray
from visx.network.isolation import observed
from visx.network.memory import out_of_memory
from visx.network.probe import noise
from visx.network.record import Record
from visx.network.scorer import Patch, Patched

PLANS = 16  # of crops, that are remembered
LEAST_ROWS = 4  # of a lane's part of a batch: smaller passes cost more a row
_NOTHING = Folded([])
_LAYOUTS = (torch.channels_last, torch.contiguous_format)  # of a module handed in, the faster first
_FULL = (torch.float32, torch.float64)

R = TypeVar("R")


class _Inside(Astray):
    """A layer's output lies inside a folded chain."""


class Accelerated:
    """The faster ways of one network. Each falls back to the plain way where there is nothing to gain, or nothing certain.

    The network says what is allowed. `accelerate`: whether there are faster ways at all. `owned`: visx has loaded the module.
    Of any other only scores are accelerated, without hooks on it and where an output depends on its picture alone; and only
    if they agree with the plain ones on the first picture, too, not on noise alone. `rounding_safe`: single gradients run
    folded as well: where rounding moves a ReLU's input across zero, the maps of this network hardly change.
    """

    def __init__(self, network: Passes) -> None:
        self._network = network
        self._folded: Folded | None = None  # None: not learnt yet
        self._layout = network.layout  # of the input of folded passes
        self._confirmed = network.owned  # whether the folded scores are known to agree on a picture
        self._exact: AsWritten | None = None
        self._exact_for: Any = None
        self._whole: set[str] = set()  # layers before whose output nothing may be folded
        self._plans: dict[Any, Plan | None] = {}  # the oldest first
        self._twins: list[Passes] = []  # for passes side by side

    @property
    def _folds(self) -> bool:
        """Whether passes run folded: on a CPU. On CUDA it takes no less time (an H100: 0.99 to 1.01 of a pass of 64 and
        256 images), and watching every call costs a pass of few images more than it saves."""
        return self._network.device.type == "cpu" and self._allowed

    @property
    def _allowed(self) -> bool:
        network = self._network
        if not network.accelerate or plain():
            return False
        return network.owned or (network.steady and network.dtype in _FULL)

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> class columns (B, K) of one pass without gradients."""
        folded = self._agreeing(x)
        if folded:
            with suppress(Astray):
                return self._run(folded, lambda: self._network.logits(x, self._layout))
        return self._network.logits(x)

    def scores_of_many(self, x: Tensor) -> Tensor:
        """As `scores`, of one batch among many: parts of it go through twins of the network, which are made for that."""
        lanes = self._lanes(len(x))
        if len(lanes) == 1:
            return self.scores(x)
        return side_by_side(lanes, len(x), lambda lane, part: lane.fast.scores(x[part]))

    def gradients(self, shape: torch.Size, run: Callable[[], R], *, summed: bool = False) -> R:
        """What `run` returns. `run` makes a pass over images of this shape (C, H, W), whose result is differentiated. A pass
        that takes another branch than the learnt one is made a second time, without folding.

        Each ReLU lets through what it lets through in the network as written, to the last bit. `summed` gives this up for
        speed: the caller adds up many gradients, and rounding does not show in their sum.
        """
        if not self._differentiates:
            return run()
        if not summed and not self._network.rounding_safe:
            return self._as_written(shape, run)
        folded = self._learnt(shape)
        if folded:
            with suppress(Astray):
                return self._run(folded, run)
        return run()

    def until(self, layer: str, shape: torch.Size, run: Callable[[Callable[[], None]], R]) -> R:
        """What `run` returns. `run` makes a pass over images of this shape (C, H, W) that is differentiated only behind
        `layer`. Its argument is a function that `run` calls as soon as it has the layer's output.

        The layers before `layer` run folded if no convolution behind `layer` could be folded. Otherwise the whole pass runs as
        written: rounding in the folded layers would flip the signs of inputs of ReLUs behind `layer`. A pass is made a second
        time, as written, where folding would change the layer's own output.
        """
        if not self._differentiates:
            return run(_nothing)
        if layer not in self._whole:
            folded = self._learnt(shape)

            def arrived() -> None:
                if folded.in_chain():
                    raise _Inside
                folded.active = False  # the gradient is of the network as it is

            try:
                if not folded:
                    return run(_nothing)
                result = self._run(folded, lambda: run(arrived))
                if not folded.passed or self._network.rounding_safe:
                    return result
            except _Inside:
                pass
            except Astray:
                return run(_nothing)
            self._whole.add(layer)
        return self._as_written(shape, lambda: run(_nothing))

    def patched(self, image: Tensor, patches: Sequence[Patch]) -> Patched | None:
        """A scorer of copies of an image (C, H, W), in each of which one of `patches` is filled. It computes only what a patch can
        change. None where that saves too little, or where its scores are not the network's."""
        network = self._network
        if not self._allowed or not network.steady or (not network.owned and not self._agreeing(image[None])):
            return None
        key = image.shape, tuple(patches)
        if key not in self._plans:
            while len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = self._planned(image, patches)
        plan = self._plans[key]
        if plan is None:
            return None
        local = Local(network, plan, image)
        twins = self._lanes(len(patches))[1:]
        return LocalLanes([local, *map(local.on, twins)]) if twins else local

    def _planned(self, image: Tensor, patches: Sequence[Patch]) -> Plan | None:
        """The plan by which copies of this image run as crops; None where there is none. For a module that was handed in, the
        plan must also give the plain scores of copies of this very image."""
        network = self._network
        if observed(network.module):
            return None
        if network.owned:
            return learn(network, image.shape, patches)
        with suppress(Exception):  # it may bear neither to be copied nor to be given another size
            plan = learn(network, image.shape, patches)
            return plan if plan is not None and same_scores(network, plan, image, patches) else None
        return None

    def folded(self, shape: torch.Size, run: Callable[[Folded | None, torch.memory_format], R]) -> R:
        """What `run` returns. `run` makes a pass without gradients over images of this shape (C, H, W). Its arguments are what
        is folded (None: nothing), and the memory format that its input shall have."""
        folded = self._learnt(shape) if self._folds else _NOTHING
        if folded:
            with suppress(Astray):
                return self._run(folded, lambda: run(folded, self._layout))
        return run(None, self._network.layout)

    def _run(self, folded: Folded, run: Callable[[], R]) -> R:
        """What `run` returns from a folded pass. Raises `Astray` where the pass takes another branch than the learnt one, or
        where it fails in a module that was handed in: one of its branches may not take the other memory format."""
        try:
            with folded:
                result = run()
                folded.check()
                return result
        except Exception as error:
            if self._network.owned or out_of_memory(error):
                raise
            raise Astray from error

    def _lanes(self, rows: int) -> list[Passes]:
        """The networks that parts of so many rows go through side by side: this one and its twins, or this one alone."""
        network, count = self._network, min(torch.get_num_threads(), MOST_LANES, rows // LEAST_ROWS)
        if count < 2 or not (network.owned and self._folds and network.steady) or observed(network.module):
            return [network]
        self._twins += [twin(network) for _ in range(count - 1 - len(self._twins))]
        return [network, *self._twins[: count - 1]]

    @property
    def _differentiates(self) -> bool:
        """Whether passes that are differentiated are accelerated. Where parts of forward run again in the backward pass,
        nothing would be folded in them."""
        return self._network.owned and self._folds and not self._network.recomputing

    def _as_written(self, shape: torch.Size, run: Callable[[], R]) -> R:
        """Forward as the network is written, backward folded where it may be."""
        network, folded = self._network, self._learnt(shape)
        of = shape, torch.get_num_threads()  # it keeps copies of weights by size
        if self._exact is None or self._exact.folded is not folded or self._exact_for != of:
            mixed = network.channels_last and network.dtype == torch.float32
            self._exact, self._exact_for = AsWritten(folded, mixed), of
        for linking in (True, False):
            self._exact.linking = linking
            with suppress(Astray), self._exact:
                return run()
        raise AssertionError("nothing goes astray where nothing is linked")

    def _learnt(self, shape: torch.Size) -> Folded:
        """What can be folded: learnt once, from a picture of its own, so that it never depends on the images; and anew
        where values have changed since."""
        if self._folded is None or not self._folded.current():
            self._folded, self._confirmed = self._learn(shape), self._network.owned
        return self._folded

    def _learn(self, shape: torch.Size) -> Folded:
        network = self._network
        picture = noise(shape)

        def recorded() -> Record:
            return network.record(shape, operations=False)

        if network.owned:
            return fold(network.module, network.prepare(picture), recorded)
        if observed(network.module):
            return _NOTHING
        for self._layout in _LAYOUTS:
            with suppress(Exception):  # its forward may bear no other layout
                return fold(network.module, network.prepare(picture, self._layout), recorded)
        return _NOTHING

    def _agreeing(self, x: Tensor) -> Folded:
        """What is folded in a pass over these pictures (B, C, H, W). Of a module handed in the first picture is scored both
        ways, once for each version of its values."""
        if not self._folds:
            return _NOTHING
        folded = self._learnt(x.shape[1:])
        if folded and not self._confirmed:
            self._confirmed = True
            if not self._agrees(folded, x[:1]):
                self._folded = folded = _NOTHING
        return folded

    def _agrees(self, folded: Folded, picture: Tensor) -> bool:
        wanted = self._network.logits(picture)
        with suppress(Astray):
            result = self._run(folded, lambda: self._network.logits(picture, self._layout))
            return agree(wanted, result, wanted.dtype)
        return False


def _nothing() -> None:
    pass
