"""Mapping: a run of `visx explain`'s own kind whose maps are then measured. Maps that are there already are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visx import __version__, targets
from visx.engine.batch import explain_batch
from visx.engine.jobs import Job
from visx.engine.loaded import AUTO_BATCH
from visx.errors import VisxError, unsupported
from visx.evaluate.ledger import Ledger
from visx.files import digest
from visx.images.find import Item
from visx.images.geometry import Placement
from visx.metrics.common.regions import Annotations, to_input
from visx.metrics.contract import Measured, Metric, Trial
from visx.models import Model
from visx.network.network import Network
from visx.network.scorer import Scorer
from visx.params import Params
from visx.run.pipeline import Run
from visx.run.progress import SILENT, Progress
from visx.seeds import image_seed
from visx.store import recipe
from visx.store.read import Stored
from visx.store.record import Failure, Record
from visx.store.settings import Settings
from visx.targets.contract import Fixed, Objective, Objectives


@dataclass(frozen=True)
class Sample(Stored):
    """A stored map with the image and the job that it is of."""

    item: Item
    job: Job

    @property
    def target(self) -> int:
        """The explained class, or the number of a regression's value."""
        return self.record.index or 0


@dataclass
class Maps:
    """What a run gave: samples in the order of images, then jobs; failures; how many were there already."""

    samples: list[Sample] = field(default_factory=list)
    errors: list[Failure] = field(default_factory=list)
    written: int = 0
    skipped: int = 0


def explain_all(
    model: Model,
    jobs: Sequence[Job],
    items: Sequence[Item],
    settings: Settings,
    progress: Progress = SILENT,
    said: Callable[[str], None] = lambda text: None,
) -> Maps:
    """Explain `items` into `settings.out`, without pictures, and return the maps. Resumes as `visx explain` does."""
    found = Maps()
    by_name = {item.name: (number, item) for number, item in enumerate(items)}
    by_key = {_key(job.method.name, job.params.model_dump(mode="json"), job.layer): job for job in jobs}

    def on_record(record: Record | Failure) -> None:
        if isinstance(record, Failure):
            found.errors.append(record)
            return
        job = by_key[_key(record.method, record.params, record.layer)]
        found.samples.append(Sample(settings.out, record, by_name[record.folder][1], job))

    settings = replace(settings, overlay=False)
    run = Run(model, jobs, settings, model.device, on_record=on_record, said=said)
    run.on_progress, run.explainer.on_passes = progress.advance, progress.within
    summary = run(items)
    found.written, found.skipped = summary.written, summary.skipped
    places = {id(job): i for i, job in enumerate(by_key.values())}
    found.samples.sort(key=lambda s: (by_name[s.item.name][0], places[id(s.job)]))
    return found


@dataclass
class Bench:
    """Where maps are measured, the model at hand: makes the `Trial` of a sample, and remembers the last image it decoded.

    `seed` is what metrics draw from, one for all maps; a method that is asked again has the seed that its map was made
    with. `boxes` are for metrics against an annotation; `ledger` knows what has been measured before.
    """

    model: Model
    network: Network
    seed: int = 0
    batch_size: int | None = None
    said: Callable[[str], None] = lambda _: None
    boxes: Annotations | None = None
    ledger: Ledger | None = None
    _last: tuple[Path, torch.Tensor, Placement, tuple[int, int], str] | None = field(default=None, repr=False)

    def measure(self, sample: Sample, metric: Metric, params: Params) -> Measured:
        """One map's value of a metric of kind `box` or `map`. Call inside `network.session()`."""
        measured: Measured
        if metric.kind == "box":
            assert self.boxes is not None
            _, place, size, digest_of_image = self.load(sample.item)
            inside = to_input(self.boxes.boxes(sample.item.path, size), place)
            measured = metric.run(sample.map(), inside, image_seed(self.seed, digest_of_image), params)
            return measured
        key = self._key(sample, metric, params)
        known = self.ledger.find(key, self.model.fingerprint) if self.ledger else None
        if known:
            return known
        measured = metric.run(self.trial(sample), params)
        if self.ledger:
            self.ledger.keep(key, measured, self.model.fingerprint)
        return measured

    def _key(self, sample: Sample, metric: Metric, params: Params) -> str:
        """A digest of all that a value follows from: the metric, the map itself, the image, the model and the recipe."""
        content = hashlib.sha256(sample.map().tobytes()).hexdigest()
        record = sample.record
        made = recipe.of_job(self.model, sample.job, record.seed, record.precision)
        shown = [record.image_sha256, record.layer, record.target, record.objective]
        return digest([__version__, metric.name, params.model_dump(mode="json"), self.seed, content, made, shown])

    def load(self, item: Item) -> tuple[torch.Tensor, Placement, tuple[int, int], str]:
        """The network's input (C, H, W), where it lies in the picture, the picture's (height, width), and its digest."""
        if self._last is None or self._last[0] != item.path:
            picture = self.model.preprocess.decode(item.read())
            x, place = self.model.preprocess(picture.pixels)
            dtype = torch.float64 if self.network.dtype == torch.float64 else torch.float32
            tensor = torch.from_numpy(x).to(self.network.device, dtype)
            self._last = (item.path, tensor, place, (picture.rgb.shape[0], picture.rgb.shape[1]), picture.digest)
        return self._last[1:]

    def trial(self, sample: Sample) -> Trial:
        """A map and the model. Call inside `network.session()`. Refuses maps of a unit, which no class score speaks about."""
        if not sample.job.of_a_class:
            raise unsupported(f"{sample.job.method.name} explains {sample.record.label}, not a class")
        x, _, _, digest = self.load(sample.item)
        values = sample.map()
        if values.shape != tuple(x.shape[-2:]):
            raise VisxError(f"the map {sample.path} is not of the model's input size {tuple(x.shape[-2:])}")
        net, drawn = self.network, image_seed(sample.record.seed, digest)
        score = Scorer(
            lambda copies: net.scores_of(copies, [drawn] * len(copies)),
            self.batch_size or AUTO_BATCH,
            self.said,
            layout=net.layout,
        )

        def again(inputs: torch.Tensor) -> np.ndarray:
            return self.explain(self.network, sample, inputs)

        objectives = Objectives([[self._objective(sample)]], net.outputs)
        return Trial(x, values, objectives, image_seed(self.seed, digest), sample.job.kind, score, again)

    def _objective(self, sample: Sample) -> Objective:
        """What a sample's map explains."""
        return targets.again(sample.record.identity, self.model.outputs, self.model.names)

    def explain(self, network: Network, sample: Sample, x: torch.Tensor) -> np.ndarray:
        """The maps (N, H, W) float64 of inputs (N, C, H, W), by a sample's job, for its objective and with its seed."""
        specs = [Fixed(self._objective(sample))] * len(x)
        seeds = [image_seed(sample.record.seed, self.load(sample.item)[3])] * len(x)
        answers = explain_batch(
            self.model, network, sample.job, x, specs, seeds, copies=self.batch_size or AUTO_BATCH, said=self.said
        )
        maps = []
        for answer in answers:
            if isinstance(answer, VisxError):
                raise answer
            maps.append(answer[0].map.astype(np.float64))
        return np.stack(maps)


def _key(method: str, params: Mapping[str, Any] | None, layer: str | None) -> str:
    return digest([method, params, layer])
