"""Images on their way through the engine: one with its jobs, one job's outcome on it, and batches of the same jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visx.engine.batch import Answer
from visx.engine.jobs import Job
from visx.errors import VisxError
from visx.images.decode import Picture
from visx.images.find import Item
from visx.images.geometry import Placement
from visx.targets.classes import TargetSpec

AUTO_BATCH = 16


Todo = tuple[Job, tuple[TargetSpec, ...]]  # a job, and the targets that it has still to explain of an image


@dataclass
class Loaded:
    """One image on its way through the pipeline, with the jobs still to do; decoded only if there are any."""

    item: Item
    todo: list[Todo]
    digest: str = ""
    stat: tuple[int, int] = (0, 0)
    picture: Picture | None = None
    x: np.ndarray | None = None
    place: Placement | None = None
    done: list[Any] = field(default_factory=list)  # the records of what a run found done

    @property
    def jobs(self) -> list[Job]:
        """The jobs still to do."""
        return [job for job, _ in self.todo]

    def targets_of(self, job: Job) -> tuple[TargetSpec, ...]:
        """The targets that one of the jobs has still to explain."""
        return next(specs for other, specs in self.todo if other is job)


@dataclass
class Explained:
    """One job's outcome on one image: an answer a target or the error it met, and the seconds it took."""

    image: Loaded
    job: Job
    answers: list[Answer] | VisxError
    seconds: float


def grouped(images: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Batches of up to `size` images that have the same jobs to do, for as many targets each."""
    groups: dict[tuple[tuple[int, ...], ...], list[Loaded]] = {}
    for image in images:
        key = tuple((id(job), *(spec.count for spec in specs)) for job, specs in image.todo)
        groups.setdefault(key, []).append(image)
        if len(groups[key]) == size:
            yield groups.pop(key)
    yield from groups.values()
