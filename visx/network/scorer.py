"""Scoring: streams of perturbed copies through a black box, in bounded batches that halve when memory runs out.

This is all that a method without `needs` sees of a model. Copies are made batch by batch from their numbers, so no
tensor of size samples x 3 x H x W ever exists, and a retry makes the same copies again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from visx.errors import VisxError
from visx.network.outputs import LOGITS, Outputs, ScoreKind

if TYPE_CHECKING:
    from visx.targets.classes import Targets

R = TypeVar("R")
Box = tuple[int, int, int, int]  # top, left, bottom, right: bottom and right are the first pixels outside


class Patched(Protocol):
    """A faster way to the class columns (N, K) of one image's copies in each of which one box is filled, equal up to rounding."""

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
    """Class columns of images and explained scalars of perturbed copies.

    `forward` maps (N, C, H, W) to class columns (N, K) without gradients, of which `outputs` makes scores; `batch_size` is how many copies go at a time;
    `said` is told when it had to halve; `progress` is told how many of how many copies are done; `layout` is the memory
    format that copies are best made in; `patched` finds a faster way for an image and all of its boxes (None: there is none).
    """

    forward: Callable[[Tensor], Tensor]
    batch_size: int = 16
    said: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int], None] = lambda done, count: None
    layout: torch.memory_format = torch.contiguous_format
    patched: Callable[[Tensor, Sequence[Box]], Patched | None] = lambda image, boxes: None
    outputs: Outputs = LOGITS

    def resolve(self, x: Tensor, targets: Targets) -> Tensor:
        """(B, T) target indices; one clean pass if nobody has made it yet."""
        return targets.ids if targets.ids is not None else targets.resolve(self.forward(x))

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

    def of(self, copies: Tensor, ids: Tensor, kind: ScoreKind) -> Tensor:
        """Explained scalars (n, T) of one batch of copies (n, C, H, W) of one image; `ids` (T,)."""
        logits = self.forward(copies)
        return self.outputs.scores(logits, ids.expand(len(copies), -1), kind)

    def scores(self, count: int, copies: Callable[[int, int], Tensor], ids: Tensor, kind: ScoreKind) -> Tensor:
        """Explained scalars (count, T) of `count` copies of one image; `copies(start, stop)` makes (n, C, H, W); `ids` (T,)."""
        return torch.cat(list(self.batches(count, lambda start, stop: self.of(copies(start, stop), ids, kind))))

    def patched_scores(self, image: Tensor, fill: Tensor, boxes: Sequence[Box], ids: Tensor, kind: ScoreKind) -> Tensor:
        """Explained scalars (boxes, T) of copies of an image (C, H, W) in each of which one box shows the fill (C, H, W)."""
        patched = self.patched(image, boxes)

        def work(start: int, stop: int) -> Tensor:
            some = boxes[start:stop]
            if patched is not None:
                return self.outputs.scores(patched.logits(fill, some), ids.expand(len(some), -1), kind)
            batch = self.copies(image, len(some))
            for copy, (top, left, bottom, right) in zip(batch, some, strict=True):
                copy[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
            return self.of(batch, ids, kind)

        return torch.cat(list(self.batches(len(boxes), work)))
