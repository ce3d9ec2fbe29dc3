"""The executor of this process: batches are explained side by side where that pays, and written behind.

The threads of one pass wait for each other after every layer, so that one which lost its core to a PNG stops them all;
passes side by side wait for nobody. On two cores and EfficientNet-Lite0 that is a seventh more images a second. Hooks
and flags belong to a module, so every lane has a network of its own, a copy around the same parameters.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.models import Model
from visx.network.blackbox import BlackBox
from visx.network.fast import plain
from visx.network.network import Network
from visx.run.progress import Progress
from visx.run.worker import Outcome, Worker
from visx.store.settings import Settings

MOST = 4  # each lane holds the activations of a batch
LANES_FROM = 64  # inputs; below, lanes would idle while the last batches are explained

Lane = TypeVar("Lane")
Result = TypeVar("Result")


def count_lanes(network: BlackBox, jobs: Iterable[Job], inputs: int) -> int:
    """How many lanes a run over so many inputs has: it follows, as the batch size does, from what was asked for and not
    from what is left to do, because the number of threads can move the last bits of a map.

    One, which has all cores, where an interrupt would have to wait for long passes, where the module is somebody else's
    (it may keep things from pass to pass), or does keep things, of a black box, and off the CPU.
    """
    if (
        not isinstance(network, Network)
        or network.device.type != "cpu"
        or not network.owned
        or plain()
        or inputs < LANES_FROM
    ):
        return 1
    if network.behaviour.one_row or network.behaviour.changing or any(job.method.passes == "many" for job in jobs):
        return 1
    return min(torch.get_num_threads(), MOST)


def threads_of(lanes: int) -> int:
    """How many threads each of so many lanes has for its passes."""
    return max(1, torch.get_num_threads() // lanes)


def twin(network: Network) -> Network:
    """A network that can be at work in another thread at the same time: a copy around the same parameters. Call inside the
    network's session, whose modes (evaluation, no gradients of parameters) the copy then has."""
    shared = {id(tensor): tensor for tensor in (*network.module.parameters(), *network.module.buffers())}
    return network.around(copy.deepcopy(network.module, shared))


class Threads:
    """Carries a run out in this process. `on_message` gets remarks on pictures and memory."""

    behind = 2

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        device: torch.device,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.jobs = list(jobs)
        self.worker = Worker(model, settings, device, on_message)
        self._lanes: Lanes[Worker, Outcome] | None = None

    def load(self, image: Loaded, data: bytes) -> None:
        """Decode an image, in a reader's thread."""
        self.worker.decode(image, data)

    def outcomes(
        self, batches: Iterable[list[Loaded]], size: int, inputs: int, pool: ThreadPoolExecutor, progress: Progress
    ) -> Generator[Iterable[Outcome], None, None]:
        """What becomes of every job on every image, batch by batch in order; `pool` writes the files."""
        self.worker.explainer.copies.on_progress = progress.within
        network = self.worker.network
        count = count_lanes(network, self.jobs, inputs)
        with network.session():  # a twin is made inside, where the module is in evaluation mode
            workers = (
                [self.worker.on(twin(network)) for _ in range(count)]
                if isinstance(network, Network) and count > 1
                else [self.worker]
            )
            self._lanes = Lanes(workers)
            with self._lanes as lanes:
                yield from lanes.each(batches, lambda worker, batch: worker.explain(batch, size, pool))

    def unseen(self) -> Sequence[Outcome]:
        """After an interrupt: the outcomes that were there and not taken yet."""
        return self._lanes.unseen() if self._lanes else []


class Lanes(Generic[Lane, Result]):
    """Lanes at work on batches, each in a thread of its own; a single one works in the caller's. Use as a context manager
    inside the network's session."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = list(lanes)
        self._running: deque[Future[list[Result]]] = deque()

    def __enter__(self) -> Lanes[Lane, Result]:
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
        self, batches: Iterable[list[Loaded]], work: Callable[[Lane, list[Loaded]], Iterable[Result]]
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

    def _work(self, work: Callable[[Lane, list[Loaded]], Iterable[Result]], batch: list[Loaded]) -> list[Result]:
        lane = self._free.get()
        try:
            return list(work(lane, batch))
        finally:
            self._free.put(lane)
