"""Scoring: streams of perturbed copies through a black box, in bounded batches that halve when memory runs out.

This is all that a method without `needs` sees of a model. Copies are made batch by batch from their numbers, so no
tensor of size samples x 3 x H x W ever exists, and a retry makes the same copies again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from visx.errors import VisxError

R = TypeVar("R")
Scores = Callable[[Tensor], Tensor]  # values (N, ...) of copies of an image -> its explained scalars (N, T)
Box = tuple[int, int, int, int]  # top, left, bottom, right: bottom and right are the first pixels outside


class Patched(Protocol):
    """A faster way to the values (N, ...) of one image's copies in each of which one box is filled, equal up to rounding."""

    def logits(self, fill: Tensor, boxes: Sequence[Box]) -> Tensor: ...


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an accelerator's or the processor's way to say that memory is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
    )


@dataclass
class Scorer:
    """Explained scalars of perturbed copies.

    `forward` maps (N, C, H, W) to values (N, ...) without gradients; `batch_size` is how many copies go at a time; `said` is told when it had to halve; `progress` is told how many of how many copies are done; `layout` is the memory
    format that copies are best made in; `patched` finds a faster way for an image and all of its boxes (None: there is none).
    """

    forward: Callable[[Tensor], Tensor]
    batch_size: int = 16
    said: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int], None] = lambda done, count: None
    layout: torch.memory_format = torch.contiguous_format
    patched: Callable[[Tensor, Sequence[Box]], Patched | None] = lambda image, boxes: None

    def batches(self, count: int, work: Callable[[int, int], R]) -> Iterator[R]:
        """`work(start, stop)` over `count` copies in order. On out-of-memory the batch halves and the piece is redone."""
        start = 0
        while start < count:
            stop = min(start + self.batch_size, count)
            try:
                result = work(start, stop)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            else:
                self.progress(stop, count)
                yield result
                start = stop
                continue
            self._halve(stop - start)  # outside the `except`: the failed pass's tensors live until it ends

    def _halve(self, failed: int) -> None:
        if failed == 1:
            raise VisxError("out of memory with a single copy", hint="a smaller model, or another device")
        self.batch_size = failed // 2
        self.said(f"out of memory: going on with batches of {self.batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def copies(self, image: Tensor, count: int) -> Tensor:
        """(C, H, W) -> (count, C, H, W): copies that may be written to, in the network's layout."""
        return image.expand(count, *image.shape).clone(memory_format=self.layout)

    def scores(self, count: int, copies: Callable[[int, int], Tensor], scores: Scores) -> Tensor:
        """Explained scalars (count, T) of `count` copies of one image; `copies(start, stop)` makes (n, C, H, W)."""
        return torch.cat(list(self.batches(count, lambda start, stop: scores(self.forward(copies(start, stop))))))

    def patched_scores(self, image: Tensor, fill: Tensor, boxes: Sequence[Box], scores: Scores) -> Tensor:
        """Explained scalars (boxes, T) of copies of an image (C, H, W) in each of which one box shows the fill (C, H, W)."""
        patched = self.patched(image, boxes)

        def work(start: int, stop: int) -> Tensor:
            some = boxes[start:stop]
            if patched is not None:
                return scores(patched.logits(fill, some))
            batch = self.copies(image, len(some))
            for copy, (top, left, bottom, right) in zip(batch, some, strict=True):
                copy[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
            return scores(self.forward(batch))

        return torch.cat(list(self.batches(len(boxes), work)))
