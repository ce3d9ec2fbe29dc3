"""Images to files: the part of a run that is the same in this process and in a worker of Ray.

Batches are padded to one size, so what an image shares its batch with changes no byte of its results.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from visx.engine.explainer import AUTO_BATCH, Explainer, prepare, stacked
from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.errors import VisxError, printable
from visx.images.find import Item
from visx.models import Model
from visx.network.blackbox import BlackBox
from visx.network.network import Network
from visx.store.record import Record
from visx.store.recorder import Recorder
from visx.store.settings import Settings
from visx.targets.contract import together

Records = list[Record]  # of one job on one image


@dataclass(frozen=True)
class Outcome:
    """What became of a job on an image: the records of its files once these are written, or the error. `job` is None
    where the image itself is broken; `last` says that nothing is left to do on the image."""

    item: Item
    job: Job | None
    result: Future[Records] | VisxError
    last: bool


def batch_size(settings: Settings, inputs: int) -> int:
    """The images a batch of a run over so many inputs, its shards counted together: the size decides bits of the maps, so
    it follows from what was asked for and not from what is left to do."""
    return min(settings.batch_size or AUTO_BATCH, inputs)


class Worker:
    """A model at work for a run: decodes images, explains batches of them and writes the results.

    `on_message` gets remarks on pictures and memory.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        device: torch.device,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.settings, self.on_message = model, settings, on_message
        _ = model.anatomy  # found here, not by a reader thread, which would wait for the end of the run's session
        network = model.black_box(settings.precision, device)
        self.explainer = Explainer(model, network, settings.batch_size, on_message)
        self.recorder = Recorder(model, network, settings)
        self._remarked: set[str] = set()  # remarks on pictures that were made already

    @property
    def network(self) -> BlackBox:
        """What scores: the network, or a black box."""
        return self.explainer.network

    def on(self, network: Network) -> Worker:
        """The same on another network of the model, for another thread."""
        other = copy.copy(self)
        other.explainer = self.explainer.on(network)
        return other

    def decode(self, image: Loaded, data: bytes = b"") -> None:
        """Decode an image (`data`: its bytes, if they were read already) into the network's input."""
        picture = self.model.preprocess.decode(data or image.item.read())
        image.prepared = prepare(self.model, picture, self.settings.seed)
        for remark in picture.remarks:
            if remark not in self._remarked:
                self._remarked.add(remark)
                self.on_message(f"{printable(str(image.item.path))}: {remark} (shown for the first such picture only)")

    def explain(self, batch: list[Loaded], size: int, writers: ThreadPoolExecutor) -> Iterator[Outcome]:
        """A batch of decoded images that have the same jobs to do, through these jobs; `writers` write the files. Batches
        are padded to `size`. Call inside `network.session()`.

        Every job finds the classes and scores in a clean pass of its own. Scores of a pass without gradients, which runs
        folded, may differ in their last digits from those of a pass with gradients, and a resumed run may have other jobs
        left to do.
        """
        x = stacked([image.ready for image in batch])
        seeds = [image.ready.seed for image in batch]
        for job in batch[0].jobs:
            begun = time.perf_counter()
            specs = [together(image.targets_of(job)) for image in batch]
            results = self.explainer.explain(job, x, specs, seeds, padded=size)
            seconds = (time.perf_counter() - begun) / len(batch)
            for image, answers in zip(batch, results, strict=True):
                result: Future[Records] | VisxError
                if isinstance(answers, VisxError):
                    result = answers
                else:
                    result = writers.submit(self.recorder.write, image, job, answers, seconds)
                yield Outcome(image.item, job, result, job is image.jobs[-1])
