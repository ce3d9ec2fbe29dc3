"""A worker of `--engine ray`: one process that holds the model and turns batches of images into files and records."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded, grouped
from visx.errors import VisxError, said_by
from visx.images.find import Item
from visx.models import Model
from visx.models.model import Weights
from visx.run.worker import Outcome, Records, Worker, batch_size
from visx.store.settings import Settings
from visx.targets.contract import Target

ATTEMPTS = 3  # at a batch whose workers die; Ray itself would try for ever

# An image, and the jobs to do on it: their numbers in the run and their targets.
Assignment = tuple[Item, list[tuple[int, tuple[Target, ...]]]]
# What became of a job on an image; None instead of the job's number where the image is broken.
Reported = tuple[Item, int | None, Records | VisxError]


@dataclass(frozen=True)
class Task:
    """What a worker has to know. `load` loads the model, `weights` are those that it must have, `folder` is where
    relative paths start, `inputs` how many there are in all, `attempts` the actor that counts the beginnings of batches."""

    load: Callable[[], Model]
    weights: Weights
    jobs: list[Job]
    settings: Settings
    inputs: int
    threads: int
    folder: Path
    attempts: Any


@dataclass
class Report:
    """What a worker says of one batch: outcomes, remarks, and the error that stops the whole run."""

    outcomes: list[Reported] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stop: VisxError | None = None


class Attempts:
    """Counts how often each batch was begun without an end. An actor of its own: it outlives a worker that dies."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count this attempt at a batch; returns how many there were with it: 1 the first time."""
        self.begun[number] += 1
        return self.begun[number]

    def end(self, number: int) -> None:
        """The batch was brought to its end."""
        del self.begun[number]


class RayWorker:
    """One process of the pool: the model, loaded once, and threads that decode and write."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.remarks: list[str] = []
        self.failure: VisxError | None = None
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="visx-io")
        torch.set_num_threads(task.threads)
        try:
            os.chdir(task.folder)
            model = task.load()
            if any(job.method.needs_with(job.params) for job in task.jobs):
                model.open()  # as planning the jobs has done on the machine of the command
            if model.weights != task.weights:
                raise VisxError(f"a Ray worker found other weights for {model.name} than the machine of the command")
            self.worker = Worker(model, task.settings, model.device, self.remarks.append)
        except (
            Exception
        ) as error:  # told with the first batch: where a constructor raises, Ray starts the worker again and again
            self.failure = _explained(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """A batch of assignments -> its report, both pickled."""
        report = Report(stop=self.failure)
        if not report.stop:
            self._work(row["number"], pickle.loads(row["assignments"]), report)
        report.remarks += self.remarks
        self.remarks.clear()
        return {"report": pickle.dumps(report)}

    def _work(self, number: int, assignments: list[Assignment], report: Report) -> None:
        attempts = self.task.attempts
        if ray.get(attempts.begin.remote(number)) > ATTEMPTS:
            error = VisxError(
                f"{ATTEMPTS} workers died over the batch of this image", hint="try it with --engine local"
            )
            report.outcomes += [(item, None, error) for item, _ in assignments]
            return
        try:
            report.outcomes += self._outcomes(assignments)
        except Exception as error:
            report.stop = _explained(error)
        attempts.end.remote(number)

    def _outcomes(self, assignments: list[Assignment]) -> Iterator[Reported]:
        loading = [(item, self.pool.submit(self._load, item, todo)) for item, todo in assignments]
        images = []
        for item, future in loading:
            try:
                images.append(future.result())
            except VisxError as error:
                yield item, None, error
        outcomes: list[Outcome] = []
        size = batch_size(self.task.settings, self.task.inputs)
        with self.worker.network.session():
            for batch in grouped(images, size):
                outcomes += self.worker.explain(batch, size, self.pool)
        for outcome in outcomes:
            assert outcome.job is not None
            number = self.task.jobs.index(outcome.job)
            try:
                written = outcome.result.result() if isinstance(outcome.result, Future) else outcome.result
                yield outcome.item, number, written
            except VisxError as error:
                yield outcome.item, number, error

    def _load(self, item: Item, todo: list[tuple[int, tuple[Target, ...]]]) -> Loaded:
        image = Loaded(item, [(self.task.jobs[number], specs) for number, specs in todo], stat=item.stat())
        self.worker.decode(image)
        return image


def _explained(error: Exception) -> VisxError:
    """An error as a `VisxError`, which the driver can unpickle without the modules that the error's own class is from."""
    if isinstance(error, VisxError):
        return error
    return VisxError(f"a Ray worker failed: {said_by(error)}", hint="--engine local with VISX_DEBUG=1 may show where")
