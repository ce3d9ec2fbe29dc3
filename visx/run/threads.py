"""Lanes: threads that explain whole batches side by side, each on its share of the cores.

The threads of one pass wait for each other after every layer, so that one which lost its core to a PNG stops them all;
passes side by side wait for nobody. On two cores and EfficientNet-Lite0 that is a seventh more images a second. Hooks
and flags belong to a module, so every lane has a network of its own, a copy around the same parameters.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.network.fast import plain
from visx.network.network import Network
from visx.run.worker import Explainer

MOST = 4  # each lane holds the activations of a batch
LANES_FROM = 64  # inputs; below, lanes would idle while the last batches are explained

Outcome = TypeVar("Outcome")


def count_lanes(network: Network, jobs: Iterable[Job], inputs: int) -> int:
    """How many lanes a run over so many inputs has: it follows, as the batch size does, from what was asked for and not
    from what is left to do, because the number of threads can move the last bits of a map.

    One, which has all cores, where an interrupt would have to wait for long passes, where the module is somebody else's
    (it may keep things from pass to pass), or does keep things, and off the CPU.
    """
    if network.device.type != "cpu" or not network.owned or plain() or inputs < LANES_FROM:
        return 1
    if network.behaviour.one_row or network.behaviour.changing or any(job.method.passes == "many" for job in jobs):
        return 1
    return min(torch.get_num_threads(), MOST)


def threads_of(lanes: int) -> int:
    """How many threads each of so many lanes has for its passes."""
    return max(1, torch.get_num_threads() // lanes)


class Lanes(Generic[Outcome]):
    """`count` explainers at work on batches; a single one works in the caller's thread. Use as a context manager inside
    the network's session."""

    def __init__(self, explainer: Explainer, count: int) -> None:
        self.explainer, self.count = explainer, count
        self._running: deque[Future[list[Outcome]]] = deque()

    def __enter__(self) -> Lanes[Outcome]:
        if self.count > 1:
            self._threads = torch.get_num_threads()
            self._free: SimpleQueue[Explainer] = SimpleQueue()
            for _ in range(self.count):
                self._free.put(beside(self.explainer))
            # the number of threads is each thread's own, and what threads that are yet to come begin with
            self._pool = ThreadPoolExecutor(
                self.count, "visx-lane", initializer=torch.set_num_threads, initargs=(threads_of(self.count),)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.count > 1:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def work(
        self, batches: Iterable[list[Loaded]], explain: Callable[[Explainer, list[Loaded]], Iterator[Outcome]]
    ) -> Iterator[Iterable[Outcome]]:
        """The outcomes of batches, in order."""
        for batch in batches:
            if self.count == 1:
                yield explain(self.explainer, batch)
                continue
            self._running.append(self._pool.submit(self._explain, explain, batch))
            if len(self._running) > self.count:
                yield self._first()
        while self._running:
            yield self._first()

    def finished(self) -> Sequence[Outcome]:
        """After an interrupt: what was finished and not taken yet."""
        done = (future for future in self._running if future.done() and not future.cancelled())
        return [outcome for future in done if future.exception() is None for outcome in future.result()]

    def _first(self) -> list[Outcome]:
        outcomes = self._running[0].result()
        self._running.popleft()
        return outcomes

    def _explain(
        self, explain: Callable[[Explainer, list[Loaded]], Iterator[Outcome]], batch: list[Loaded]
    ) -> list[Outcome]:
        explainer = self._free.get()
        try:
            return list(explain(explainer, batch))
        finally:
            self._free.put(explainer)


def beside(explainer: Explainer) -> Explainer:
    """An explainer that can work in another thread at the same time: its network is a copy around the same parameters."""
    network, other = explainer.network, copy.copy(explainer)
    shared = {id(tensor): tensor for tensor in (*network.module.parameters(), *network.module.buffers())}
    other.network = network.around(copy.deepcopy(network.module, shared))
    return other
