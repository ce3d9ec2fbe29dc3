"""Images of a run on their way through the engine, and batches of those that have the same jobs to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from visx.engine.explainer import Prepared
from visx.engine.jobs import Job
from visx.images.find import Item
from visx.targets.contract import Target

Todo = tuple[Job, tuple[Target, ...]]  # a job, and the targets that it has still to explain of an image


@dataclass
class Loaded:
    """One image of a run with the jobs that are still to do.

    `stat` is its file's size and time of modification. `prepared` is None until the image is decoded; an image without jobs
    to do is never decoded. `done` holds the records (of the store) of results that are there already.
    """

    item: Item
    todo: list[Todo]
    stat: tuple[int, int] = (0, 0)
    prepared: Prepared | None = None
    done: list[Any] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        """The jobs still to do."""
        return [job for job, _ in self.todo]

    @property
    def ready(self) -> Prepared:
        """The picture and the network's input, of an image that is decoded."""
        assert self.prepared is not None, "the image is not decoded yet"
        return self.prepared

    def targets_of(self, job: Job) -> tuple[Target, ...]:
        """The targets that one of the jobs has still to explain."""
        return next(specs for other, specs in self.todo if other is job)


def grouped(images: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Batches of up to `size` images that have the same jobs to do, for as many targets each."""
    groups: dict[tuple[tuple[int, ...], ...], list[Loaded]] = {}
    for image in images:
        key = tuple((id(job), *(spec.count for spec in specs)) for job, specs in image.todo)
        groups.setdefault(key, []).append(image)
        if len(groups[key]) == size:
            yield groups.pop(key)
    yield from groups.values()
