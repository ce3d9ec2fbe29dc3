"""Memory: work on many rows in batches, which halve when memory runs out. The engine cuts its images and the scorer its
copies by the same rule, so every command does the same and says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from visx.errors import VisxError

R = TypeVar("R")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an accelerator's or the processor's way to say that memory is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
    )


@dataclass
class BatchSize:
    """How many rows (images or perturbed copies) go through a network at a time.

    `rows` halves when memory runs out and stays halved, for what comes later needs no less; `on_message` gets one line a
    halving. `on_progress` gets how many of how many rows are done, after every batch. `what` names one row.
    """

    rows: int = 16
    on_message: Callable[[str], None] = lambda text: None
    on_progress: Callable[[int, int], None] = lambda done, count: None
    what: str = "copy"

    def split(self, count: int, work: Callable[[int, int], R], padded: int = 0) -> Iterator[R]:
        """`work(start, stop)` over `count` rows, in order. A batch that runs out of memory is done again in halves.

        `padded` is the number of rows to which `work` fills each batch (to `rows` where these are fewer): then that
        number is halved, not the rows of a shorter batch. Raises a `VisxError` where memory does not suffice for one row.
        """
        start = 0
        while start < count:
            stop = min(start + self.rows, count)
            try:
                result = work(start, stop)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            else:
                self.on_progress(stop, count)
                yield result
                start = stop
                continue
            self._halve(
                min(padded, self.rows) if padded else stop - start
            )  # after `except`: the failed pass's tensors live until then

    def _halve(self, failed: int) -> None:
        if failed == 1:
            raise VisxError(f"out of memory with a single {self.what}", hint="a smaller model, or another device")
        self.rows = min(self.rows, failed // 2)  # an inner use of the same size may have halved it already
        self.on_message(f"out of memory: going on with batches of {self.rows}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
