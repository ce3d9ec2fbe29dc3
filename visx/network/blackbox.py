"""The black box: all that a method which only scores may know of a model.

A `Network` is one. So is whatever else takes a batch of pictures and returns values: a Python function, a file of another
framework, a served model. What is optional has a default here; gradients, layers and rules are a `Network`'s alone, and a
method asks for them by its `needs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visx.network.behaviour import PLAIN, Behaviour
from visx.network.outputs import Outputs
from visx.network.scorer import Patch, Patched
from visx.network.tokens import Tokens


class BlackBox(ABC):
    """Values of batches of normalised pictures (B, C, H, W).

    `device`, `dtype` and `layout` are those that pictures are best made in; any others must be taken, too.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    about: str = ""  # how it computes, in words
    remarks: tuple[str, ...] = ()  # what its user has to know, one line each

    @property
    @abstractmethod
    def outputs(self) -> Outputs:
        """What the values mean."""

    @abstractmethod
    def scores_of(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """The values (B, ...) of pictures (B, C, H, W), float32 or better, without gradients; class columns (B, K) of a
        classifier. `seeds`: one a row, where rows are pictures of their own. Raises `VisxError` (exit 4) where an output is
        not what `outputs` says."""

    def examine(self, shape: Sequence[int], means: str | None = None, head: str | int | None = None) -> Outputs:
        """Its `outputs`, and its `behaviour` from now on, found by running it on noise of this shape (C, H, W) where it does
        not know them itself; `means` and `head` overrule what is found. Raises `VisxError`: exit 1 where it fails, 2 for a
        `means` or `head` that does not fit, 4 for an output that cannot be explained."""
        return self.outputs

    def move(self, device: torch.device) -> torch.device:
        """Where it computes from now on: on this device, if it can choose. Raises `VisxError` where that cannot be used."""
        return self.device

    def as_module(self, shape: Sequence[int]) -> tuple[nn.Module | None, str]:
        """A torch module that computes the same for pictures of this shape (C, H, W), for methods that need more than
        scores, and in words how it was had; or None, and in words why there is none (empty: it never has one)."""
        return None, ""

    def scores_of_many(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """As `scores_of`, of one batch among many, for instance of perturbed copies of a picture."""
        return self.scores_of(x, seeds)

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of a batch."""
        return torch.contiguous_format

    @property
    def behaviour(self) -> Behaviour:
        """What the values of a picture depend on besides the picture: nothing, unless a black box knows better."""
        return PLAIN

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Everything that computes happens inside one; sessions may nest."""
        yield self

    @contextmanager
    def of_picture(self, seed: int) -> Iterator[None]:
        """Inside, passes are over one picture and its copies, with this seed."""
        yield

    def patched(self, image: Tensor, patches: Sequence[Patch]) -> Patched | None:
        """A faster way to the values of copies of an image (C, H, W) with one of `patches` filled; None where there is none."""
        return None

    def tokens(self, shape: torch.Size) -> Tokens | str:
        """The tokens of pictures of this shape (C, H, W), any of which can be left out, or why none can, in words."""
        return "it only gives scores"
