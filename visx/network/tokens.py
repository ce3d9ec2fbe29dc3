"""Hidden tokens left out: copies of a picture whose hidden patches never enter the attention of a vision transformer.

The tokens of the whole picture (patch embedding and position embedding) do not depend on what is hidden. A copy is the
tokens that stay, taken out where the first block begins, so that it costs only these. Class, distillation and register
tokens always stay. This equals weights of zero for the hidden tokens in every attention, but for rounding; a head that averages
the patches averages those that stay. Whether a network allows it, visx/network/token_trial.py finds out:
`Network.tokens(shape)` gives the `Tokens`, or the reason why there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from visx.errors import unsupported
from visx.network.isolation import hooked
from visx.network.outputs import Outputs, in_full
from visx.network.record import Record
from visx.network.stream import Tap, blocks


class Followed(Protocol):
    """A network whose tokens can be left out (`visx.network.network.Network`)."""

    module: nn.Module
    dtype: torch.dtype
    device: torch.device

    @property
    def outputs(self) -> Outputs:
        """What the module's raw output means."""

    @property
    def steady(self) -> bool:
        """Whether an output depends on its picture alone, and a pass changes nothing in the module."""

    def session(self) -> AbstractContextManager[Any]:
        """Everything that computes happens inside one."""

    def prepare(self, x: Tensor) -> Tensor:
        """`x` on the module's device and in its precision."""

    def run(self, x: Tensor) -> Any:
        """The module's raw output for prepared pictures (B, C, H, W)."""

    def layer(self, name: str) -> nn.Module:
        """The module at a path."""

    def record(self, shape: torch.Size) -> Record:
        """What a pass over a noise picture of this shape (C, H, W) shows of the module as it is now."""

    def converted(self, dtype: torch.dtype) -> Any:
        """The same network in another precision."""


@dataclass(frozen=True)
class Tokens:
    """The patch tokens of a network, any of which can be left out; it counts for pictures of one size.

    `tap` is where they are taken out. `many`: a pass over n copies is given the picture n times, for networks that take the
    number of rows from it; else it is given once.
    `bare`: a copy without any patch can be scored, by the class token (and the like) alone.
    """

    network: Followed
    tap: Tap
    many: bool = False
    bare: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return self.tap.grid.shape[1:]

    @torch.no_grad()
    def values(self, image: Tensor, visible: Tensor) -> Tensor:
        """The values (N, ...) of copies of an image (C, H, W), in float32 or better. `visible` (N, rows x columns) bool: the
        patches that stay. Copies with equally many go through together. The values of a copy without any are NaN where the
        network cannot score it."""
        counts = visible.sum(1)
        result: Tensor | None = None
        for number in counts.unique().tolist():
            rows = (counts == number).nonzero().flatten()
            scored = number > 0 or self.bare
            some = visible[rows] if scored else _first(visible[rows])
            values = in_full(self.run_on(image, self.positions(some)))
            if result is None:
                result = values.new_empty(len(visible), *values.shape[1:])
            result[rows.to(values.device)] = values if scored else torch.nan
        assert result is not None, "there are no copies"
        return result

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """The features (K, rows x columns) of the patches behind each block, those of all blocks one after the other, in a
        clean pass over an image (C, H, W). (0, ...) where no module is a block."""
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            for tap in blocks(self.network.record(image.shape)):

                def keep(tokens: Tensor, tap: Tap = tap) -> Tensor:
                    outputs.append(in_full(tap.grid.maps(tokens)[0].flatten(1)))
                    return tokens

                stack.enter_context(_changed(self.network, tap, keep))
            self._run(image[None])
        return torch.cat(outputs) if outputs else image.new_zeros(0, self.grid[0] * self.grid[1])

    def positions(self, visible: Tensor) -> Tensor:
        """The positions (N, n) in the sequence of the tokens that stay, prefixes and all, given the patches that stay."""
        grid = self.tap.grid
        stays = torch.ones(len(visible), grid.places[0], dtype=torch.bool)
        stays[:, slice(None) if grid.cells is None else grid.cells.cpu()] = visible.cpu()
        return stays.nonzero()[:, 1].view(len(visible), -1).to(self.network.device)

    def run_on(self, image: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Values of copies of an image that keep the tokens at these positions (N, n): of the image's own tokens, or of
        `tokens` (all, features)."""
        order = self._order

        def take(sequence: Tensor) -> Tensor:
            own = sequence.permute(order)[0] if tokens is None else tokens
            back = [order.index(axis) for axis in range(3)]
            return own[positions].permute(back).contiguous()

        with _changed(self.network, self.tap, take):
            return self._run(image.expand(len(positions) if self.many else 1, *image.shape), len(positions))

    def sequence(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens (all, features) of an image, and its values (1, ...)."""
        kept: list[Tensor] = []

        def keep(sequence: Tensor) -> Tensor:
            kept.append(sequence.permute(self._order)[0].clone())
            return sequence

        with _changed(self.network, self.tap, keep):
            values = self._run(image[None])
        return kept[0], values

    @property
    def _order(self) -> tuple[int, int, int]:
        """The axes of the sequence in the order batch, tokens, features."""
        batch, features, tokens = self.tap.grid.axes
        return batch, tokens, features

    def _run(self, x: Tensor, rows: int = 1) -> Tensor:
        return self.network.outputs.values(self.network.run(self.network.prepare(x)), rows)


@contextmanager
def _changed(network: Followed, tap: Tap, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """For the time of the `with`, the sequence of tokens at a tap is what `change` makes of it."""
    module, calls, axes = network.layer(tap.name), count(), tap.grid.axes

    def changed(sequence: Any) -> Tensor:
        batch = sequence.shape[axes[0]] if isinstance(sequence, Tensor) and sequence.dim() == 3 else 0
        if not batch or tuple(sequence.shape) != tap.grid.form(batch):
            raise unsupported(f"{tap.name} no longer sees the sequence of tokens that it saw before")
        return change(sequence)

    def before(module: nn.Module, args: Any) -> Any:
        return (changed(args[0]), *args[1:]) if next(calls) == tap.call else None

    def behind(module: nn.Module, args: Any, output: Any) -> Any:
        return changed(output) if next(calls) == tap.call else None

    if not tap.entering:
        with hooked(module, behind):
            yield
        return
    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _first(visible: Tensor) -> Tensor:
    """The same copies with the first patch alone."""
    first = torch.zeros_like(visible)
    first[:, 0] = True
    return first
