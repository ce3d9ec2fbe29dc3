"""What the faster ways ask of a network, and whether they are wanted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from visx.network.fast.fold import Folded
from visx.network.record import Record

PLAIN = "VISX_PLAIN"  # the environment variable that turns every speed-up off


def plain() -> bool:
    """Whether the environment variable `VISX_PLAIN` asks for networks to run as they are written."""
    return os.environ.get(PLAIN, "") not in ("", "0")


R = TypeVar("R")
Net = TypeVar("Net")


class Folding(Protocol):
    """Passes that run folded (`visx.network.fast.accelerated.Accelerated`)."""

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> class columns (B, K) of one pass without gradients."""

    def folded(self, shape: torch.Size, run: Callable[[Folded | None, torch.memory_format], R]) -> R:
        """What `run` returns, a pass without gradients over images of this shape (C, H, W)."""


class Passes(Protocol):
    """A network as the faster ways see it: its module and its passes (`visx.network.network.Network`)."""

    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    owned: bool
    accelerate: bool
    rounding_safe: bool
    recomputing: bool  # whether checkpointing was seen to run parts of forward again in the backward pass

    @property
    def fast(self) -> Folding:
        """Its faster ways."""

    @property
    def steady(self) -> bool:
        """Whether an output depends on its picture alone, and a pass changes nothing in the module."""

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of the module's input."""

    def prepare(self, x: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """`x` on the module's device, in its precision, and in this memory format (None: the network's own)."""

    def logits(self, x: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """(B, C, H, W) -> class columns (B, K), in one plain pass."""

    def scores_of(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> class columns (B, K), without gradients, by whichever way is fastest."""

    def output_of(self, layer: nn.Module, x: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """A module's output, without gradients, in a plain pass that ends there."""

    def record(self, shape: torch.Size, *, operations: bool = True) -> Record:
        """What a pass over a noise picture of this shape (C, H, W) shows of the module as it is now."""

    def around(self: Net, module: nn.Module) -> Net:
        """A network like this one, of another module: a copy of this one's."""

    def converted(self, dtype: torch.dtype) -> Passes:
        """The same network in another precision."""
