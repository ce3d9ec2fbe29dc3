"""Maps and their values: `explain_all` makes the maps of a folder as `visx explain` does, `Bench` measures one map with one
metric. Maps and values of earlier runs are used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visx import __version__, targets
from visx.engine.explainer import Explainer, Prepared, prepare
from visx.engine.jobs import Job
from visx.errors import VisxError, unsupported
from visx.evaluate.ledger import Ledger
from visx.files import digest
from visx.images.find import Item
from visx.metrics.common.regions import Annotations, to_input
from visx.metrics.contract import Measured, Metric, Trial
from visx.models import Model
from visx.params import Params
from visx.run.pipeline import Run
from visx.run.progress import SILENT, Progress
from visx.run.threads import Threads
from visx.seeds import image_seed
from visx.store import recipe
from visx.store.read import Stored
from visx.store.record import Failure, Record
from visx.store.settings import Settings
from visx.targets.contract import Fixed, Objective, Objectives


@dataclass(frozen=True)
class Sample(Stored):
    """A stored map, with the image and the job that it was made from."""

    item: Item
    job: Job

    @property
    def target(self) -> int | str:
        """What is explained, as tables refer to it: the class, the number of a regression's value, or a text."""
        return self.record.reference


@dataclass
class Explained:
    """What `explain_all` returns: samples in the order of the images, then of the jobs; failures; how many results were
    `written` now, and how many were complete before (`skipped`)."""

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
    on_message: Callable[[str], None] = lambda text: None,
) -> Explained:
    """Explains images into the folder `settings.out`, without overlays, and returns the stored maps. Results that are
    complete there are not computed again, as with `visx explain`."""
    explained = Explained()
    by_name = {item.name: (number, item) for number, item in enumerate(items)}
    by_key = {_key(job.method.name, job.params.model_dump(mode="json"), job.layer): job for job in jobs}

    def on_record(record: Record | Failure) -> None:
        if isinstance(record, Failure):
            explained.errors.append(record)
            return
        job = by_key[_key(record.method, record.params, record.layer)]
        explained.samples.append(Sample(settings.out, record, by_name[record.folder][1], job))

    settings = replace(settings, overlay=False)
    threads = Threads(model, jobs, settings, model.device, on_message)
    summary = Run(model, jobs, settings, threads, on_record, on_message)(items, progress=progress)
    explained.written, explained.skipped = summary.written, summary.skipped
    order = {id(job): i for i, job in enumerate(by_key.values())}
    explained.samples.sort(key=lambda s: (by_name[s.item.name][0], order[id(s.job)]))
    return explained


class Bench:
    """Measures stored maps with the model that they explain. It keeps the last image that it decoded.

    `seed` is the seed of metrics that draw random numbers, the same for all maps. A metric that runs the method again does
    so with the seed that the sample's map was made with. `boxes` are the annotations for metrics of kind `box`; `ledger`
    holds values that were measured before.
    """

    def __init__(
        self,
        explainer: Explainer,
        seed: int = 0,
        boxes: Annotations | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.explainer, self.seed, self.boxes, self.ledger = explainer, seed, boxes, ledger
        self._last: tuple[Path, Prepared] | None = None

    def measure(self, sample: Sample, metric: Metric, params: Params) -> Measured:
        """One map's value of a metric of kind `box`, `alone` or `map`. Call inside `network.session()`."""
        measured: Measured
        if metric.kind == "alone":
            measured = metric.run(sample.map(), params)
            return measured
        if metric.kind == "box":
            assert self.boxes is not None
            image = self.load(sample.item)
            height, width = image.picture.rgb.shape[:2]
            boxes = to_input(self.boxes.boxes(sample.item.path, (height, width)), image.place)
            measured = metric.run(sample.map(), boxes, image_seed(self.seed, image.picture.digest), params)
            return measured
        key = self._key(sample, metric, params)
        known = self.ledger.find(key, self.explainer.model.fingerprint) if self.ledger else None
        if known:
            return known
        measured = metric.run(self.trial(sample), params)
        if self.ledger:
            self.ledger.keep(key, measured, self.explainer.model.fingerprint)
        return measured

    def _key(self, sample: Sample, metric: Metric, params: Params) -> str:
        """The digest of everything that a value follows from: the metric, the map's values, the image and the map's recipe."""
        content = hashlib.sha256(sample.map().tobytes()).hexdigest()
        record = sample.record
        of_map = recipe.of_job(self.explainer.model, sample.job, record.seed, record.precision)
        explained = [record.image_sha256, record.layer, record.target, record.objective]
        return digest([__version__, metric.name, params.model_dump(mode="json"), self.seed, content, of_map, explained])

    def load(self, item: Item) -> Prepared:
        """An image, decoded, and the network's input made from it."""
        if self._last is None or self._last[0] != item.path:
            model = self.explainer.model
            self._last = item.path, prepare(model, model.preprocess.decode(item.read()), self.seed)
        return self._last[1]

    def input(self, item: Item) -> torch.Tensor:
        """The network's input (C, H, W) for an image, on its device."""
        network = self.explainer.network
        dtype = torch.float64 if network.dtype == torch.float64 else torch.float32
        return torch.from_numpy(self.load(item).x).to(network.device, dtype)

    def trial(self, sample: Sample) -> Trial:
        """The trial of a sample, for metrics that run the model. Call inside `network.session()`. Raises `VisxError` (exit 4)
        for the map of a unit, because metrics measure how the score of a class changes."""
        if not sample.job.of_a_class:
            raise unsupported(f"{sample.job.method.name} explains {sample.record.label}, not a class")
        x, digest = self.input(sample.item), self.load(sample.item).picture.digest
        values = sample.map()
        if values.shape != tuple(x.shape[-2:]):
            raise VisxError(f"the map {sample.path} is not of the model's input size {tuple(x.shape[-2:])}")
        scorer = self.explainer.scorer(image_seed(sample.record.seed, digest))

        def again(inputs: torch.Tensor) -> np.ndarray:
            return self.explain(self.explainer, sample, inputs)

        objectives = Objectives([[self._objective(sample)]], self.explainer.network.outputs)
        return Trial(x, values, objectives, image_seed(self.seed, digest), sample.job.kind, scorer, again)

    def _objective(self, sample: Sample) -> Objective:
        """What a sample's map explains."""
        model = self.explainer.model
        return targets.again(sample.record.identity, model.outputs, model.names)

    def explain(self, explainer: Explainer, sample: Sample, x: torch.Tensor) -> np.ndarray:
        """The maps (N, H, W) float64 of inputs (N, C, H, W), by a sample's job, for its objective and with its seed."""
        specs = [Fixed(self._objective(sample))] * len(x)
        seeds = [image_seed(sample.record.seed, self.load(sample.item).picture.digest)] * len(x)
        maps = []
        for answers in explainer.explain(sample.job, x, specs, seeds):
            if isinstance(answers, VisxError):
                raise answers
            maps.append(answers[0].map.astype(np.float64))
        return np.stack(maps)


def _key(method: str, params: Mapping[str, Any] | None, layer: str | None) -> str:
    return digest([method, params, layer])
