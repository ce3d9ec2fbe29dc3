"""The pipeline of a run: look at images ahead, have whole batches explained, one line in the manifest a result.

An executor carries the batches out, in this process (`run/threads.py`) or on Ray's workers (`run/ray/driver.py`). Batches
are padded to one size, which follows from the inputs listed and not from what is left to do, so a resumed run and a shard
write the same bytes as a whole one. One image's failure is one record; the rest of the run goes on.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded, grouped
from visx.errors import ExitCode, VisxError, printable
from visx.files import DiskFull
from visx.images.decode import digest_of
from visx.images.find import Item
from visx.models import Model
from visx.run.progress import SILENT, Progress
from visx.run.worker import Outcome, Records, batch_size
from visx.store.manifest import Journal
from visx.store.record import Failure, Record
from visx.store.recorder import Recorder
from visx.store.settings import Settings
from visx.targets.contract import Target

AHEAD = 2  # batches looked at ahead


class Executor(Protocol):
    """What carries a run's batches out. `behind` is the number of batches whose files may still be on their way to the
    disk: so many outcomes later, the pipeline waits for them."""

    behind: int

    def load(self, image: Loaded, data: bytes) -> None:
        """What can be done ahead on an image that has jobs to do, in a reader's thread. `data`: its bytes, if they were
        read already."""

    def outcomes(
        self, batches: Iterable[list[Loaded]], size: int, inputs: int, pool: ThreadPoolExecutor, progress: Progress
    ) -> Generator[Iterable[Outcome], None, None]:
        """What becomes of every job on every image of batches padded to `size`, in a run over so many inputs; `pool` has
        threads that read and write; `progress` hears of the passes within a batch."""

    def unseen(self) -> Sequence[Outcome]:
        """After an interrupt: outcomes that were there and not taken yet."""


@dataclass
class Summary:
    """What became of a run: results written, results that were there already, images gone through, and the reasons of
    those that failed, by name."""

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


class Run:
    """One run of jobs over images into a folder.

    `on_record` receives every record of the manifest, in order: results, results that were there already, and failures;
    `on_message` gets remarks worth a line.
    """

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        executor: Executor,
        on_record: Callable[[Record | Failure], None] = lambda record: None,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.jobs, self.settings, self.executor = model, list(jobs), settings, executor
        self.on_record, self.on_message = on_record, on_message
        self.progress: Progress = SILENT
        self.recorder = Recorder(model, model.black_box(settings.precision), settings)
        self.journal = Journal(settings.out, settings.shard)
        self.summary = Summary()
        self._writing: deque[Outcome] = deque()  # results on their way to the disk
        self._older: set[str] = set()  # images whose folder in OUT was there before
        self._replaced: list[tuple[str, str, str]] = []  # a map, the image it was of, and the one it is of now
        self._outdated = 0  # results of older versions, which recorded less, computed anew

    def __call__(self, items: Sequence[Item], progress: Progress = SILENT) -> Summary:
        """Explain every item; `progress` is advanced for every image. Interrupted, what was finished is kept and the
        exception goes on."""
        self.progress = progress
        with self.journal:
            if self.settings.resume:
                self.journal.read()
            try:
                self._carry_out(items, self.settings.listed or len(items))
            finally:
                self._tell_replaced()
        return self.summary

    def _carry_out(self, items: Sequence[Item], inputs: int) -> None:
        """Explain every item of a run over so many inputs, the journal being open."""
        size = batch_size(self.settings, inputs)
        pool = ThreadPoolExecutor(2, thread_name_prefix="visx-io")
        try:
            batches = grouped(self._left(self._ahead(pool, items, AHEAD * size)), size)
            work = self.executor.outcomes(batches, size, inputs, pool, self.progress)
            with contextlib.closing(work) as outcomes:
                for some in outcomes:
                    for outcome in some:
                        self._receive(outcome)
                    while len(self._writing) > self.executor.behind * size:
                        self._settle(self._writing.popleft())
            while self._writing:
                self._settle(self._writing.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for outcome in (*self._writing, *self.executor.unseen()):
                if isinstance(outcome.result, Future) and not outcome.result.cancelled():
                    with contextlib.suppress(VisxError):  # a full disk must not hide the first reason
                        self._settle(outcome)
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
        """In a reader's thread: an image with what is to do on it, loaded by the executor if anything is."""
        todo = self.settings.target
        if any(job.of_a_class for job in self.jobs):
            todo = todo.for_image(str(item.path), self.model.names, self.model.classes)
        targets = [(job, todo.each if job.of_a_class else todo.each[:1]) for job in self.jobs]
        image = Loaded(item, targets, stat=item.stat())
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
        if image.jobs:
            self.executor.load(image, data)
        return image

    def _open(self, image: Loaded, job: Job, specs: Sequence[Target], digest: Callable[[], str]) -> tuple[Target, ...]:
        """The targets whose results are not there yet; those that are go to the image's `done`. A class that is among the
        top ones and asked for by itself, too, is explained once."""
        there: Records = []
        missing: list[Target] = []
        for spec in specs:
            done = self.recorder.done(self.journal, image.item, job, spec, image.stat, digest)
            if spec.index is None or spec.index not in [record.target for record in there]:
                missing += [] if done else [spec]
                there += done
        image.done += there
        return tuple(missing)

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

    def _receive(self, outcome: Outcome) -> None:
        """Keep what became of one job on one image: an error now, results when their files are written."""
        if isinstance(outcome.result, VisxError):
            self._fail(outcome.item, outcome.result, outcome.job)
        else:
            self._writing.append(outcome)
        if outcome.last:
            self._count_image()

    def _settle(self, outcome: Outcome) -> None:
        """Wait for the files of one job on one image, then let the manifest and the listeners know."""
        assert isinstance(outcome.result, Future)
        try:
            records = outcome.result.result()
        except DiskFull:
            raise
        except VisxError as error:  # what cannot be written for one image does not stop the others
            self._fail(outcome.item, error, outcome.job)
            return
        self._keep(records)

    def _keep(self, records: Records) -> None:
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
            self.on_message(
                f"{results} of an older visx computed anew: its manifest does not say all that they follow from"
            )
        if self._replaced:
            name, before, now = (printable(text) for text in self._replaced[0])
            count = len(self._replaced)
            results = "1 result of another image was" if count == 1 else f"{count} results of other images were"
            self.on_message(
                f"{results} replaced: {name} was of {before}, and is of {now} now (another --out keeps both)"
            )

    def _fail(self, item: Item, error: VisxError, job: Job | None = None) -> None:
        self.summary.failed.setdefault(item.name, error.message)
        failure = Failure.of_error(str(item.path), job.method.name if job else None, error)
        self.journal.append([failure])
        self.on_record(failure)
        if self.settings.fail_fast:
            raise VisxError("stopped at the first failure, as --fail-fast asks")

    def _count_image(self) -> None:
        self.summary.images += 1
        self.progress.advance(1)
