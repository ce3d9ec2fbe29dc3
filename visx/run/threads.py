"""The executor of this process: batches are explained side by side where that pays, and written behind.

On two cores and EfficientNet-Lite0 two lanes (visx/network/fast/lanes.py), of which a PNG stops one alone, explain a seventh
more images a second than passes with two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.models import Model
from visx.network.blackbox import BlackBox
from visx.network.fast import MOST_LANES, Lanes, plain, twin
from visx.network.network import Network
from visx.run.progress import Progress
from visx.run.worker import Outcome, Worker
from visx.store.settings import Settings

LANES_FROM = 64  # inputs; below, lanes would idle while the last batches are explained


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
    return min(torch.get_num_threads(), MOST_LANES)


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
        self._lanes: Lanes[Worker, list[Loaded], Outcome] | None = None

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
