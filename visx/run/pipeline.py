"""The pipeline of a run: decode ahead, explain whole batches, render and write behind, one line in the manifest each.

Batches are padded to one size, which follows from the inputs listed and not from what is left to do, so a resumed run
and a shard write the same bytes as a whole one. One image's failure is one record; the rest of the run goes on.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Explained, Loaded, grouped
from visx.errors import ExitCode, VisxError, printable
from visx.files import DiskFull
from visx.images.decode import digest_of
from visx.images.find import Item
from visx.models import Model
from visx.run.threads import Lanes, count_lanes
from visx.run.worker import Explainer
from visx.store.manifest import Journal
from visx.store.record import Failure, Record
from visx.store.settings import Settings
from visx.targets.classes import TargetSpec

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


_Writing = tuple[Item, Job, "Future[list[Record]]"]  # results on their way to the disk
_Outcome = tuple[Explained, "Future[list[Record]] | None"]  # None where there is nothing to write


class Run:
    """One run of jobs over images into a folder.

    `on_record` receives every record of the manifest in order: results, results found done, and failures;
    `on_progress` the number of images finished; `said` remarks worth a line.
    """

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        device: torch.device,
        on_record: Callable[[Record | Failure], None] = lambda record: None,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.jobs, self.settings = list(jobs), settings
        self.explainer = Explainer(model, settings, device, said)
        self.on_record = on_record
        self.on_progress: Callable[[int], None] = lambda done: None
        self.journal = Journal(settings.out, settings.shard)
        self.summary = Summary()
        self._tell = said
        self._older: set[str] = set()  # images whose folder in OUT was there before
        self._replaced: list[tuple[str, str, str]] = []  # a map, the image it was of, and the one it is of now
        self._outdated = 0  # results of older versions, which recorded less, computed anew

    def __call__(self, items: Sequence[Item], total: int | None = None) -> Summary:
        """Explain every item; `total` is the number of inputs that these are a shard of. Interrupted, what was finished
        is kept and the exception goes on."""
        with self.journal:
            if self.settings.resume:
                self.journal.read()
            try:
                self._carry_out(items, total or len(items))
            finally:
                self._tell_replaced()
        return self.summary

    def _carry_out(self, items: Sequence[Item], inputs: int) -> None:
        """Explain every item of a run over so many inputs, the journal being open."""
        size = self.explainer.sized(inputs)
        pool = ThreadPoolExecutor(2, thread_name_prefix="visx-io")
        writing: deque[_Writing] = deque()
        lanes: Lanes[_Outcome] = Lanes(self.explainer, count_lanes(self.explainer.network, self.jobs, inputs))
        try:
            batches = grouped(self._left(self._ahead(pool, items, AHEAD * size)), size)
            with self.explainer.network.session(), lanes:
                for outcomes in lanes.work(batches, partial(self._explain, size, pool)):
                    for outcome in outcomes:
                        self._receive(outcome, writing)
                    while len(writing) > AHEAD * size:
                        self._settle(writing.popleft())
            while writing:
                self._settle(writing.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            writing += [(found.image.item, found.job, write) for found, write in lanes.finished() if write]
            for writer in writing:  # a full disk or a second interrupt must not hide the first reason
                if not writer[2].cancelled():
                    with contextlib.suppress(VisxError):
                        self._settle(writer)
            raise
        pool.shutdown()

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
        image, data = self._look(item)
        if image.jobs:
            self.explainer.decode(image, data)
        return image

    def _look(self, item: Item) -> tuple[Loaded, bytes]:
        """An image with what is to do on it, and its bytes if they had to be read to know."""
        image = self.explainer.look(item, self.jobs)
        if (self.settings.out / item.name).is_dir():
            self._older.add(item.name)
        data = b""

        def digest() -> str:
            nonlocal data
            data = data or item.read()
            return digest_of(data)

        if self.settings.resume:
            image.todo = [(job, self._open(image, job, specs, digest)) for job, specs in image.todo]
            image.todo = [(job, specs) for job, specs in image.todo if specs]
        return image, data

    def _open(
        self, image: Loaded, job: Job, specs: Sequence[TargetSpec], digest: Callable[[], str]
    ) -> tuple[TargetSpec, ...]:
        """The targets whose results are not there yet; those that are go to the image's `done`. A class that is among the
        top ones and asked for by itself, too, is explained once."""
        found: list[Record] = []
        left: list[TargetSpec] = []
        for spec in specs:
            done = self.explainer.recorder.done(self.journal, image.item, job, spec, image.stat, digest)
            if spec.index is None or spec.index not in [record.target for record in found]:
                left += [] if done else [spec]
                found += done
        image.done += found
        return tuple(left)

    def _left(self, loaded: Iterator[tuple[Item, Future[Loaded]]]) -> Iterator[Loaded]:
        """The images with something to do; the done ones are reported, the broken ones recorded."""
        for item, future in loaded:
            try:
                image = future.result()
            except VisxError as error:
                self._fail(item, error)
                self._count_image()
                continue
            for record in image.done:
                self.summary.skipped += 1
                self.on_record(record)
            if image.jobs:
                yield image
            else:
                self._count_image()

    def _explain(
        self, size: int, pool: ThreadPoolExecutor, explainer: Explainer, batch: list[Loaded]
    ) -> Iterator[_Outcome]:
        """One batch through its jobs; every image's results go to the writers."""
        for found in explainer.explain(batch, size):
            if isinstance(found.answers, VisxError):
                yield found, None
            else:
                write = pool.submit(explainer.recorder.write, found.image, found.job, found.answers, found.seconds)
                yield found, write

    def _receive(self, outcome: _Outcome, writing: deque[_Writing]) -> None:
        """What became of one job on one image."""
        found, write = outcome
        image, job = found.image, found.job
        if write is not None:
            writing.append((image.item, job, write))
        elif isinstance(found.answers, VisxError):
            self._fail(image.item, found.answers, job)
        if job is image.jobs[-1]:
            self._count_image()

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
        self._keep(records)

    def _keep(self, records: Sequence[Record]) -> None:
        """Results that are written go to the manifest and the listeners. A record whose file they have taken is withdrawn by
        that: of two the later counts."""
        for record in records if records and records[0].name in self._older else ():
            before = self.journal.claimant(record.npy) or record
            if before.image_sha256 != record.image_sha256 and before.image != record.image:
                self._replaced.append((record.npy, before.image, record.image))
            elif before.written is None and self.settings.resume:
                self._outdated += 1
        self.journal.append(records)
        for record in records:
            self.summary.written += 1
            self.on_record(record)

    def _tell_replaced(self) -> None:
        if self._outdated:
            results = "1 result" if self._outdated == 1 else f"{self._outdated} results"
            self._tell(f"{results} of an older visx computed anew: its manifest does not say all that they follow from")
        if self._replaced:
            name, before, now = (printable(text) for text in self._replaced[0])
            count = len(self._replaced)
            results = "1 result of another image was" if count == 1 else f"{count} results of other images were"
            self._tell(f"{results} replaced: {name} was of {before}, and is of {now} now (another --out keeps both)")

    def _fail(self, item: Item, error: VisxError, job: Job | None = None) -> None:
        self.summary.failed.setdefault(item.name, error.message)
        failure = Failure.of_error(str(item.path), job.method.name if job else None, error)
        self.journal.append([failure])
        self.on_record(failure)
        if self.settings.fail_fast:
            raise VisxError("stopped at the first failure, as --fail-fast asks")

    def _count_image(self) -> None:
        self.summary.images += 1
        self.on_progress(1)
