"""Scoring: streams of perturbed copies through a black box, in bounded batches that halve when memory runs out.

This is all that a method without `needs` sees of a model. Copies are made batch by batch from their numbers, so no
tensor of size samples x 3 x H x W ever exists, and a retry makes the same copies again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from visx.errors import unsupported
from visx.network.memory import BatchSize
from visx.network.tokens import Tokens

R = TypeVar("R")
Scores = Callable[[Tensor], Tensor]  # values (N, ...) of copies of an image -> its explained scalars (N, T)
Patch = tuple[
    int, int, int, int
]  # top, left, bottom, right of a rectangle: bottom and right are the first pixels outside


class Patched(Protocol):
    """A faster way to the values (N, ...) of one image's copies in each of which one patch is filled, equal up to rounding."""

    def logits(self, fill: Tensor, patches: Sequence[Patch]) -> Tensor: ...


@dataclass
class Scorer:
    """Explained scalars of perturbed copies.

    `forward` maps (N, C, H, W) to values (N, ...) without gradients; `size` is how many copies go through it at a time; `layout`
    is the memory format that copies are best made in; `patched` gives a faster way for an image and all of its patches (None:
    there is none); `tokens` says which tokens of pictures of a shape (C, H, W) can be left out, or why none can.
    """

    forward: Callable[[Tensor], Tensor]
    size: BatchSize = field(default_factory=BatchSize)
    layout: torch.memory_format = torch.contiguous_format
    patched: Callable[[Tensor, Sequence[Patch]], Patched | None] = lambda image, patches: None
    tokens: Callable[[torch.Size], Tokens | str] = lambda shape: "it only gives scores"

    def batches(self, count: int, work: Callable[[int, int], R]) -> Iterator[R]:
        """`work(start, stop)` over `count` copies in order, in batches that halve when memory runs out."""
        return self.size.split(count, work)

    def progress(self, done: int, count: int) -> None:
        """Say that `done` of `count` steps are done, where a step is more than a batch of copies."""
        self.size.on_progress(done, count)

    def copies(self, image: Tensor, count: int) -> Tensor:
        """(C, H, W) -> (count, C, H, W): copies that may be written to, in the network's layout."""
        return image.expand(count, *image.shape).clone(memory_format=self.layout)

    def scores(self, count: int, copies: Callable[[int, int], Tensor], scores: Scores) -> Tensor:
        """Explained scalars (count, T) of `count` copies of one image; `copies(start, stop)` makes (n, C, H, W)."""
        return torch.cat(list(self.batches(count, lambda start, stop: scores(self.forward(copies(start, stop))))))

    def patched_scores(self, image: Tensor, fill: Tensor, patches: Sequence[Patch], scores: Scores) -> Tensor:
        """Explained scalars (patches, T) of copies of an image (C, H, W) in each of which one patch shows the fill (C, H, W)."""
        patched = self.patched(image, patches)

        def work(start: int, stop: int) -> Tensor:
            some = patches[start:stop]
            if patched is not None:
                return scores(patched.logits(fill, some))
            batch = self.copies(image, len(some))
            for copy, (top, left, bottom, right) in zip(batch, some, strict=True):
                copy[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
            return scores(self.forward(batch))

        return torch.cat(list(self.batches(len(patches), work)))

    def tokens_of(self, image: Tensor) -> Tokens:
        """The tokens of an image (C, H, W). Raises `VisxError` (exit 4) where they cannot be left out."""
        tokens = self.tokens(image.shape)
        if isinstance(tokens, str):
            raise unsupported(
                f"tokens of this model cannot be left out: {tokens}", "hide=fill puts pixels in their place"
            )
        return tokens

    def token_scores(self, image: Tensor, visible: Tensor, scores: Scores) -> Tensor:
        """Explained scalars (N, T) of copies of an image (C, H, W) that keep the patches `visible` (N, cells) bool; the others
        are left out of the network. Equal copies are scored once, and those that keep equally many side by side."""
        tokens = self.tokens_of(image)
        distinct, which = visible.cpu().unique(dim=0, return_inverse=True)
        order = distinct.sum(1).argsort(stable=True)
        distinct = distinct[order]
        parts = self.batches(len(distinct), lambda a, b: scores(tokens.values(image, distinct[a:b])))
        result = torch.cat(list(parts))
        return result[order.argsort()[which].to(result.device)]
