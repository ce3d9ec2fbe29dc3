"""A black box around a function: whatever takes a batch of pictures and returns scores.

What the scores mean, and what they depend on besides the picture, is found by running the function on noise. Batches have the
size, the order of axes and the type of numbers that it takes; what it raises becomes a `VisxError`.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from visx.errors import VisxError, said_by, unsupported
from visx.network import repeatable
from visx.network.behaviour import PLAIN, Behaviour, drawing
from visx.network.blackbox import BlackBox
from visx.network.heads import Squash
from visx.network.isolation import plain_torch
from visx.network.meaning import recognise_alone
from visx.network.memory import out_of_memory
from visx.network.outputs import WAY_ON, Outputs
from visx.network.settings import default_device, seed_all

WITHIN = (
    "its values lie within 0..1 and do not sum to one: they are taken for logits; --means sigmoid says that they are "
    "independent probabilities"
)


class Function(BlackBox):
    """Scores of a function that is given pictures (N, C, H, W), or (N, H, W, C) where it is `nhwc`, with their channels in
    reverse order where it is `bgr`: up to `most` at a time (None: any number), and always so many where it is `exact`."""

    def __init__(
        self, name: str, *, nhwc: bool = False, bgr: bool = False, most: int | None = None, exact: bool = False
    ) -> None:
        self.name, self.nhwc, self.bgr, self.most, self.exact = name, nhwc, bgr, most, exact
        self._outputs: Outputs | None = None
        self._behaviour = PLAIN
        self._seed = 0  # of the picture at work, from which the function draws
        self._turn = threading.RLock()  # one thread at a time
        self._surroundings: torch.device | None = None  # the caller's default device, where that is not the CPU

    @abstractmethod
    def answer(self, x: Tensor) -> Any:
        """The raw output for pictures in the function's own order of axes: tensors in any nesting, a row a picture. May raise
        anything."""

    way_on = "return one row of scores for each picture, (N, classes)"  # from an output that cannot be explained

    def squash(self, member: str | None) -> Squash:
        """The activation that is known to come last before a member of the raw output; empty where none is."""
        return ""

    def hint(self, error: BaseException) -> str:
        """What helps against an error of the function."""
        return "VISX_DEBUG=1 shows the traceback"

    @property
    def outputs(self) -> Outputs:
        assert self._outputs is not None, "examine() comes first"
        return self._outputs

    @property
    def behaviour(self) -> Behaviour:
        return self._behaviour

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.nhwc else torch.contiguous_format

    @contextmanager
    def session(self) -> Iterator[Function]:
        """The function to oneself, torch's settings plain; the random numbers of the process are restored at the end."""
        with self._turn, ExitStack() as stack:
            before, surroundings = self._surroundings, default_device()
            if surroundings.type != "cpu":
                self._surroundings = surroundings
            stack.enter_context(plain_torch())
            try:
                yield self
            finally:
                self._surroundings = before

    @contextmanager
    def of_picture(self, seed: int) -> Iterator[None]:
        before, self._seed = self._seed, seed
        try:
            yield
        finally:
            self._seed = before

    def examine(self, shape: Sequence[int], means: str | None = None, head: str | int | None = None) -> Outputs:
        picture, others = repeatable.noise(shape)
        self._behaviour = PLAIN
        with self.session(), drawing:
            seed_all(0)
            raw = self._one(picture)
            try:
                self._outputs = recognise_alone(
                    raw, lambda: map(self._one, others), means=means, head=head, squash=self.squash
                )
            except VisxError as error:
                if error.hint != WAY_ON:
                    raise
                raise unsupported(f"{self.name}: {error.message}", self.way_on) from None
            self._behaviour = repeatable.observe(self._values, picture, others)
            inside = self._outputs.kind == "logits" and not means
            inside = inside and all(bool(((v >= 0) & (v <= 1)).all()) for v in map(self._values, (picture, *others)))
        self.remarks = (*(r for r in self.remarks if r != WITHIN), *((WITHIN,) if inside else ()))
        return self.outputs

    def scores_of(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        if not self.behaviour.one_row:
            return self._values(x)
        rows = []
        for row, seed in zip(x.split(1), seeds or [self._seed] * len(x), strict=True):
            with self.of_picture(seed):
                rows.append(self._values(row))
        return torch.cat(rows)

    def _values(self, x: Tensor) -> Tensor:
        """The values (B, ...) of pictures in as many calls as they need, float32 or the float64 that the function takes."""
        parts = []
        for part in x.split(self.most) if self.most else (x,):
            raw, rows = self._call(part)
            parts.append(self.outputs.values(raw, rows)[: len(part)])
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        return values.to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)

    def _call(self, x: Tensor) -> tuple[Any, int]:
        """The raw output of one call, and its number of rows: more than pictures where the function takes `exact` batches."""
        if self.exact and self.most and len(x) < self.most:
            x = torch.cat([x, x[-1:].expand(self.most - len(x), *x.shape[1:])])
        given = x.detach().to(self.device, self.dtype)
        given = given.flip(1) if self.bgr else given
        given = given.permute(0, 2, 3, 1).contiguous() if self.nhwc else given.contiguous()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._surroundings is not None:
                stack.enter_context(self._surroundings)
            if self._behaviour.random:
                stack.enter_context(drawing)
                seed_all(self._seed)
            try:
                return self.answer(given), len(x)
            except VisxError:
                raise
            except (Exception, SystemExit) as error:
                if out_of_memory(error):
                    raise
                size = "x".join(map(str, given.shape))
                raise VisxError(
                    f"{self.name} fails on an input of {size}: {said_by(error)}", hint=self.hint(error)
                ) from error

    def _one(self, picture: Tensor) -> Any:
        """The raw output for one picture (1, C, H, W)."""
        raw, rows = self._call(picture)
        return raw if rows == 1 else first_rows(raw, rows)


def first_rows(raw: Any, rows: int) -> Any:
    """A raw output for so many pictures, cut down to the first of them."""
    if isinstance(raw, Tensor):
        return raw[:1] if raw.dim() and len(raw) == rows else raw
    if isinstance(raw, dict):
        return {key: first_rows(value, rows) for key, value in raw.items()}
    return [first_rows(value, rows) for value in raw] if isinstance(raw, (list, tuple)) else raw
