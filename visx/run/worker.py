"""Batches of images through a run's jobs, from decoding to written files: the part of a run that is the same in the
process that the run was started in and in an engine's worker.

Batches are padded to one size, so what an image shares its batch with changes no byte of its results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from visx.engine.batch import Answer, explain_batch
from visx.engine.jobs import Job
from visx.engine.loaded import AUTO_BATCH, Explained, Loaded
from visx.errors import VisxError, printable
from visx.images.find import Item
from visx.models import Model
from visx.network.scorer import out_of_memory
from visx.seeds import image_seed
from visx.store.recorder import Recorder
from visx.store.settings import Settings
from visx.targets.classes import together


class Explainer:
    """A model at work for a run: loads images, explains batches of them, writes results. `said` gets remarks."""

    def __init__(
        self, model: Model, settings: Settings, device: torch.device, said: Callable[[str], None] = lambda text: None
    ) -> None:
        self.model, self.settings, self.said = model, settings, said
        _ = model.anatomy  # found here, not by a reader thread, which would wait for the end of the run's session
        self.network = model.network(settings.precision, device)
        self.recorder = Recorder(model, self.network, settings)
        self.on_passes: Callable[[int, int], None] = lambda done, count: None  # of what is computed at the moment
        self._halved: int | None = None
        self._remarked: set[str] = set()  # what was said of pictures

    def sized(self, inputs: int) -> int:
        """The batch size of a run over so many inputs, shards of it counted together: it decides the bytes."""
        return min(self.settings.batch_size or AUTO_BATCH, inputs)

    def look(self, item: Item, jobs: Iterable[Job]) -> Loaded:
        """An image as it lies on the disk, not decoded yet."""
        jobs = list(jobs)
        if any(job.of_a_class for job in jobs):
            whole = self.settings.target.for_image(str(item.path), self.model.names, self.model.classes)
        else:
            whole = self.settings.target
        todo = [(job, whole.each if job.of_a_class else whole.each[:1]) for job in jobs]
        return Loaded(item, todo, stat=item.stat())

    def decode(self, image: Loaded, data: bytes = b"") -> None:
        """Decode an image (`data`: its bytes, if they were read already) into the network's input."""
        image.picture = self.model.preprocess.decode(data or image.item.read())
        image.digest = image.picture.digest
        image.x, image.place = self.model.preprocess(image.picture.pixels)
        for remark in image.picture.remarks:
            if remark not in self._remarked:
                self._remarked.add(remark)
                self.said(f"{printable(str(image.item.path))}: {remark} (shown for the first such picture only)")

    def explain(self, batch: list[Loaded], size: int) -> Iterator[Explained]:
        """A batch of decoded images with the same jobs, padded to `size`, through these. Call inside
        `network.session()`."""
        for job in batch[0].jobs:
            begun = time.perf_counter()
            answers = self._with_less_memory(batch, job, size)
            seconds = (time.perf_counter() - begun) / len(batch)
            for image, found in zip(batch, answers, strict=True):
                yield Explained(image, job, found, seconds)

    def _with_less_memory(self, batch: list[Loaded], job: Job, size: int) -> list[list[Answer] | VisxError]:
        """Explain in pieces of the padded size; when memory runs out, of half that size, and say so."""
        while True:
            piece = min(size, self._halved or size)
            try:
                answers: list[list[Answer] | VisxError] = []
                for start in range(0, len(batch), piece):
                    part = batch[start : start + piece]
                    padded = part + [part[-1]] * (piece - len(part))
                    answers += self._compute(padded, len(part), job)
                return answers
            except Exception as error:
                if not out_of_memory(error) or piece == 1:
                    raise
                self._halved = piece // 2
                self.said(f"out of memory: going on with batches of {self._halved}")

    def _compute(self, images: list[Loaded], count: int, job: Job) -> list[list[Answer] | VisxError]:
        """Answers for the first `count` images; the others pad the batch.

        Every job finds the classes and scores in its own clean pass: those of another may differ in their last digits
        (without gradients ReLUs are folded too), and a resumed run may have other jobs left to do.
        """
        specs = [together(image.targets_of(job)) for image in images]
        x = torch.from_numpy(np.stack([image.x for image in images if image.x is not None]))
        if self.network.device.type == "cuda":
            x = x.pin_memory().to(self.network.device, non_blocking=True)
        seeds = [image_seed(self.settings.seed, image.digest) for image in images]
        copies = self.settings.batch_size or AUTO_BATCH
        return explain_batch(
            self.model, self.network, job, x, specs, seeds, count=count, copies=copies, said=self.said, progress=self.on_passes,
        )  # fmt: skip
