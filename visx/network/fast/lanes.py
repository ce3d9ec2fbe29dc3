"""Lanes: passes side by side on a CPU, each in a thread of its own with its share of the cores.

The threads of one pass wait for each other after every layer, so that one which lost its core to another process stops
them all; passes side by side wait for nobody. Hooks and flags belong to a module, so every lane has a network of its own, a
twin around the same parameters.

The number of threads of a pass can move the last bits of what it returns. So the number of lanes follows from what is asked
for, and never from how busy the machine is.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

from visx.network.fast.passes import Passes

MOST_LANES = 4  # each lane holds the activations of its batch, and folded weights

Lane = TypeVar("Lane")
Batch = TypeVar("Batch")
Result = TypeVar("Result")
Net = TypeVar("Net", bound=Passes)


def threads_of(lanes: int) -> int:
    """How many threads each of so many lanes has for its passes."""
    return max(1, torch.get_num_threads() // lanes)


def twin(network: Net) -> Net:
    """A network that can be at work in another thread at the same time: a copy around the same parameters. Call inside the
    network's session, whose modes (evaluation, no gradients of parameters) the copy then has."""
    shared = {id(tensor): tensor for tensor in (*network.module.parameters(), *network.module.buffers())}
    return network.around(copy.deepcopy(network.module, shared))


def side_by_side(lanes: Sequence[Lane], rows: int, work: Callable[[Lane, slice], Tensor]) -> Tensor:
    """`work(lane, part)` for parts of so many rows at the same time, one a lane, put together again: (rows, ...). The
    caller's thread is the first lane's. When it is interrupted, the parts that have begun are waited for."""
    step = -(-rows // len(lanes))
    pairs = list(zip(lanes, range(0, rows, step), strict=False))
    if len(pairs) == 1:
        return work(lanes[0], slice(0, rows))
    threads, share, graph = torch.get_num_threads(), threads_of(len(pairs)), torch.is_grad_enabled()

    def one(lane: Lane, start: int) -> Tensor:
        torch.set_num_threads(share)
        with torch.set_grad_enabled(graph):  # a thread's own, too
            return work(lane, slice(start, min(start + step, rows)))

    try:
        with ThreadPoolExecutor(len(pairs) - 1, "visx-lane") as pool:
            others = [pool.submit(one, *pair) for pair in pairs[1:]]
            return torch.cat([one(*pairs[0]), *(other.result() for other in others)])
    finally:
        torch.set_num_threads(threads)


class Lanes(Generic[Lane, Batch, Result]):
    """Lanes at work on whole batches, which come one after the other; a single lane works in the caller's thread. Use as a
    context manager inside the network's session."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = list(lanes)
        self._running: deque[Future[list[Result]]] = deque()

    def __enter__(self) -> Lanes[Lane, Batch, Result]:
        if len(self.lanes) > 1:
            self._threads = torch.get_num_threads()
            self._free: SimpleQueue[Lane] = SimpleQueue()
            for lane in self.lanes:
                self._free.put(lane)
            # the number of threads is each thread's own, and what threads that are yet to come begin with
            share = (threads_of(len(self.lanes)),)
            self._pool = ThreadPoolExecutor(
                len(self.lanes), "visx-lane", initializer=torch.set_num_threads, initargs=share
            )
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.lanes) > 1:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def each(
        self, batches: Iterable[Batch], work: Callable[[Lane, Batch], Iterable[Result]]
    ) -> Iterator[Iterable[Result]]:
        """The results of `work(lane, batch)` for every batch, in order; those of a single lane as they come."""
        for batch in batches:
            if len(self.lanes) == 1:
                yield work(self.lanes[0], batch)
                continue
            self._running.append(self._pool.submit(self._work, work, batch))
            if len(self._running) > len(self.lanes):
                yield self._first()
        while self._running:
            yield self._first()

    def unseen(self) -> list[Result]:
        """After an interrupt: results of batches that were finished and not taken yet."""
        done = (future for future in self._running if future.done() and not future.cancelled())
        return [result for future in done if future.exception() is None for result in future.result()]

    def _first(self) -> list[Result]:
        results = self._running[0].result()
        self._running.popleft()
        return results

    def _work(self, work: Callable[[Lane, Batch], Iterable[Result]], batch: Batch) -> list[Result]:
        lane = self._free.get()
        try:
            return list(work(lane, batch))
        finally:
            self._free.put(lane)
