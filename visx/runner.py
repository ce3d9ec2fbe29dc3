"""The pipeline of a run: decode ahead, explain whole batches, render and write behind, one line in the manifest each.

Batches are padded to one size, which follows from the inputs listed and not from what is left to do, so a resumed run
and a shard write the same bytes as a whole one. One image's failure is one record; the rest of the run goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from visx.artifacts import SCHEMA_VERSION, DiskFull, to_json
from visx.engine import Job, explain_batch
from visx.errors import ExitCode, VisxError
from visx.images import Picture, Placement, decode, digest_of
from visx.inputs import Item
from visx.journal import Journal
from visx.models import Model
from visx.results import Recorder, Settings
from visx.scoring import out_of_memory
from visx.seeds import image_seed
from visx.targets import Targets, TargetSpec

AUTO_BATCH = 16
FOLD_FROM = 64  # inputs from which learning to fold batch norms pays off
AHEAD = 2  # batches decoded ahead and written behind


@dataclass
class Summary:
    """What became of a run: results written, results found done, images gone through, and the reasons of those that
    failed, by name."""

    written: int = 0
    skipped: int = 0
    images: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> ExitCode:
        """The exit code this adds up to."""
        if not self.failed:
            return ExitCode.OK
        return ExitCode.SOME_FAILED if self.written + self.skipped else ExitCode.FAILURE


@dataclass
class Loaded:
    """One image on its way through the pipeline, with the jobs still to do; decoded only if there are any."""

    item: Item
    spec: TargetSpec
    jobs: list[Job]
    digest: str = ""
    stat: tuple[int, int] = (0, 0)
    picture: Picture | None = None
    x: np.ndarray | None = None
    place: Placement | None = None
    done: list[dict[str, Any]] = field(default_factory=list)


_Writing = tuple[Item, Job, "Future[list[dict[str, Any]]]"]  # results on their way to the disk


class Run:
    """One run of jobs over images into a folder.

    `on_record` receives every manifest record with its line, in order: results, results found done, and errors;
    `on_progress` the number of images finished; `said` remarks worth a line.
    """

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        device: torch.device,
        on_record: Callable[[dict[str, Any], str], None] = lambda record, line: None,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.jobs, self.settings = model, list(jobs), settings
        self.network = model.network(settings.precision, device)
        self.recorder = Recorder(model, self.network, settings)
        self.on_record, self.said = on_record, said
        self.on_progress: Callable[[int], None] = lambda done: None
        self.journal = Journal(settings.out, settings.shard)
        self.summary = Summary()
        self._halved: int | None = None

    def __call__(self, items: Sequence[Item], total: int | None = None) -> Summary:
        """Explain every item; `total` is the number of inputs that these are a shard of. Interrupted, what was finished
        is kept and the exception goes on."""
        size = min(self.settings.batch_size or AUTO_BATCH, total or len(items))
        self.network.fold_layers = (total or len(items)) >= FOLD_FROM
        pool = ThreadPoolExecutor(2, thread_name_prefix="visx-io")
        writing: deque[_Writing] = deque()
        with self.journal:
            if self.settings.resume:
                self.journal.read()
            try:
                with self.network.session():
                    for batch in self._batches(self._ahead(pool, items, AHEAD * size), size):
                        self._explain(batch, size, pool, writing)
                        while len(writing) > AHEAD * size:
                            self._settle(writing.popleft())
                while writing:
                    self._settle(writing.popleft())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for writer in writing:  # a full disk or a second interrupt must not hide the first reason
                    if not writer[2].cancelled():
                        with contextlib.suppress(VisxError):
                            self._settle(writer)
                raise
            pool.shutdown()
        return self.summary

    def _ahead(
        self, pool: ThreadPoolExecutor, items: Sequence[Item], count: int
    ) -> Iterator[tuple[Item, Future[Loaded]]]:
        """Items in order with their loading, at most `count` begun ahead."""
        begun: deque[tuple[Item, Future[Loaded]]] = deque()
        for item in items:
            begun.append((item, pool.submit(self._load, item)))
            if len(begun) > count:
                yield begun.popleft()
        while begun:
            yield begun.popleft()

    def _load(self, item: Item) -> Loaded:
        """In a reader's thread: find what is to do, and decode if anything is."""
        spec = self.settings.target.for_image(str(item.path), self.model.labels, self.model.classes)
        image = Loaded(item, spec, list(self.jobs))
        image.stat = item.stat()
        data = b""

        def digest() -> str:
            nonlocal data
            data = data or item.read()
            return digest_of(data)

        if self.settings.resume:
            image.jobs = []
            for job in self.jobs:
                found = self.recorder.done(self.journal, item, job, spec, image.stat, digest)
                image.done += found
                image.jobs += [] if found else [job]
        if image.jobs:
            image.picture = decode(data or item.read())
            image.digest = image.picture.digest
            image.x, image.place = self.model.preprocess(image.picture.rgb)
        return image

    def _batches(self, loaded: Iterator[tuple[Item, Future[Loaded]]], size: int) -> Iterator[list[Loaded]]:
        """Groups of images that have the same jobs to do; the done ones are reported, the broken ones recorded."""
        groups: dict[tuple[int, ...], list[Loaded]] = {}
        for item, future in loaded:
            try:
                image = future.result()
            except VisxError as error:
                self._fail(item, error)
                self._count_image()
                continue
            for record in image.done:
                self.summary.skipped += 1
                self.on_record(record, to_json(record))
            if not image.jobs:
                self._count_image()
                continue
            key = tuple(map(id, image.jobs))
            groups.setdefault(key, []).append(image)
            if len(groups[key]) == size:
                yield groups.pop(key)
        yield from groups.values()

    def _explain(self, batch: list[Loaded], size: int, pool: ThreadPoolExecutor, writing: deque[_Writing]) -> None:
        """One batch through its jobs; every image's results go to the writers."""
        targets: dict[tuple[int, int], Targets] = {}
        for job in batch[0].jobs:
            begun = time.perf_counter()
            answers = self._with_less_memory(batch, job, size, targets)
            seconds = (time.perf_counter() - begun) / len(batch)
            for image, found in zip(batch, answers, strict=True):
                if isinstance(found, VisxError):
                    self._fail(image.item, found, job)
                    continue
                writing.append((image.item, job, pool.submit(self.recorder.write, image, job, found, seconds)))
        for _ in batch:
            self._count_image()

    def _with_less_memory(
        self, batch: list[Loaded], job: Job, size: int, targets: dict[tuple[int, int], Targets]
    ) -> list[Any]:
        """Explain in pieces of the padded size; when memory runs out, of half that size, and say so."""
        while True:
            piece = min(size, self._halved or size)
            try:
                answers: list[Any] = []
                for start in range(0, len(batch), piece):
                    part = batch[start : start + piece]
                    padded = part + [part[-1]] * (piece - len(part))
                    shared = targets.setdefault((start, piece), Targets([image.spec for image in padded]))
                    answers += self._compute(padded, len(part), job, shared)
                return answers
            except Exception as error:
                if not out_of_memory(error) or piece == 1:
                    raise
                self._halved = piece // 2
                self.said(f"out of memory: going on with batches of {self._halved}")

    def _compute(self, images: list[Loaded], count: int, job: Job, targets: Targets) -> list[Any]:
        """Answers for the first `count` images; the others pad the batch."""
        x = torch.from_numpy(np.stack([image.x for image in images if image.x is not None]))
        if self.network.device.type == "cuda":
            x = x.pin_memory().to(self.network.device, non_blocking=True)
        seeds = [image_seed(self.settings.seed, image.digest) for image in images]
        copies = self.settings.batch_size or AUTO_BATCH
        return explain_batch(
            self.model, self.network, job, x, targets.specs, seeds,
            targets=targets, count=count, copies=copies, said=self.said,
        )  # fmt: skip

    def _settle(self, writer: _Writing) -> None:
        """Wait for the files of one job on one image, then let the manifest and the listeners know."""
        item, job, future = writer
        try:
            records = future.result()
        except DiskFull:
            raise
        except VisxError as error:  # what cannot be written for one image does not stop the others
            self._fail(item, error, job)
            return
        for record, line in zip(records, self.journal.append(records), strict=True):
            self.summary.written += 1
            self.on_record(record, line)

    def _fail(self, item: Item, error: VisxError, job: Job | None = None) -> None:
        self.summary.failed.setdefault(item.name, error.message)
        record = {
            "schema_version": SCHEMA_VERSION,
            "image": str(item.path),
            "method": job.method.name if job else None,
            "error": {"code": int(error.code), "message": error.message, "hint": error.hint},
        }
        self.on_record(record, *self.journal.append([record]))
        if self.settings.fail_fast:
            raise VisxError("stopped at the first failure, as --fail-fast asks")

    def _count_image(self) -> None:
        self.summary.images += 1
        self.on_progress(1)
