"""Sensitivity: how much a method's map changes with a hyperparameter, the seed or noise on the image.

SAM: Bansal et al. 2020, arXiv:2003.08754. One map is made for each setting and image. Metrics of two maps compare every
pair of settings in a group (or each setting with the default); metrics of one map measure the map of each setting. `mean`
and `std` are over images. `between` is the deviation that SAM's program reports: the standard deviation of an image's
values over the group's settings (or pairs), as root mean square over images.

Noise is Gaussian, of the given variance, on the pixels (0..1) of the picture as the network sees it after resizing and
cropping, and clipped to 0..1 like any picture (SAM's program adds it before resizing, which takes part of it away); the
class stays that of the clean image. A map made with noise is measured on the noisy picture, because it explains that one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visx.engine.explainer import Explainer
from visx.engine.jobs import Job
from visx.engine.predict import predictions
from visx.errors import ExitCode, VisxError, usage
from visx.evaluate.bench import Bench, Sample, explain_all
from visx.evaluate.evaluate import average, measuring_error
from visx.evaluate.ledger import Ledger
from visx.files import DiskFull
from visx.images.find import Item
from visx.images.geometry import Placement, Preprocess
from visx.metrics.common.regions import Annotations
from visx.metrics.contract import Metric
from visx.models import Model
from visx.params import Params
from visx.run.progress import SILENT, Progress
from visx.seeds import image_seed
from visx.sensitivity.settings import Against, Setting
from visx.store.settings import Settings
from visx.targets.classes import TargetSpec
from visx.targets.contract import Target

# by job, seed and noise: stored maps, each with its values of the metrics of one map
MapsBySetting = dict[tuple[Job, int, float], list[tuple[Sample, dict[str, float]]]]


@dataclass(frozen=True)
class Score:
    """The value of one metric on one image: of the maps of two settings, or of the map of the `first` alone, where `second`
    is empty."""

    image: str
    target: int | str
    first: str
    second: str
    metric: str
    value: float


@dataclass
class Group:
    """Settings of one method on one model that are compared with each other; their scores, and the stored maps by image and
    target, then by the name of the setting."""

    model: str
    method: str
    settings: list[Setting]
    varied: str
    scores: list[Score] = field(default_factory=list)
    samples: dict[tuple[str, int | str], dict[str, Sample]] = field(default_factory=dict)

    def rows(self, metrics: Sequence[Metric]) -> Iterator[dict[str, Any]]:
        """The rows of the table: for every metric one over all pairs (or settings), then one for each."""
        for metric in metrics:
            scores = [s for s in self.scores if s.metric == metric.name]
            if not scores:
                continue
            images: dict[tuple[str, int | str], list[float]] = {}
            for score in scores:
                images.setdefault((score.image, score.target), []).append(score.value)
            means = [(target, float(np.mean(values))) for (_, target), values in images.items()]
            between = float(np.sqrt(np.mean([np.var(values) for values in images.values()])))
            yield self._row("all", metric, means, between)
            for both in dict.fromkeys((s.first, s.second) for s in scores):
                values = [(s.target, s.value) for s in scores if (s.first, s.second) == both]
                yield self._row(" | ".join(filter(None, both)), metric, values)

    def _row(
        self, name: str, metric: Metric, values: Sequence[tuple[int | str, float]], between: float | None = None
    ) -> dict[str, Any]:
        classes = np.array([target for target, _ in values]) if metric.average == "class" else None
        numbers = np.array([value for _, value in values])
        paired = metric.kind == "pair"
        return {
            "model": self.model, "method": self.method, "varied": self.varied,
            "pair": name if paired else None, "setting": None if paired else name, "metric": metric.name,
            "mean": float(average(numbers, classes)), "std": float(np.std(numbers)), "between": between, "images": len(values),
        }  # fmt: skip


@dataclass
class Sensitivity:
    """What `measure` fills: all groups, what failed ({image, method, error, ...}), and how many maps were `written` now or
    complete before (`skipped`)."""

    metrics: list[Metric]
    groups: list[Group] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0
    skipped: int = 0

    def note(self, errors: Iterable[dict[str, Any]]) -> None:
        """Adds failures. One that occurs under many settings is kept once."""
        for error in errors:
            if error not in self.errors:
                self.errors.append(error)

    @property
    def code(self) -> ExitCode:
        """The exit code: OK, SOME_FAILED, or FAILURE where nothing could be measured."""
        if not self.errors:
            return ExitCode.OK
        return ExitCode.SOME_FAILED if any(g.scores for g in self.groups) else ExitCode.FAILURE

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows(self.metrics)]


@dataclass(frozen=True)
class NoisyPreprocess(Preprocess):
    """A preprocessing with Gaussian noise of `variance` on the pixels (0..1) of what the network sees, clipped to 0..1."""

    variance: float = 0.0
    seed: int = 0

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, Placement]:
        """As `Preprocess` returns, with noise that follows from the seed and the picture."""
        x, place = super().__call__(rgb)
        mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (self.mean, self.std))
        random = np.random.default_rng(image_seed(self.seed, hashlib.sha256(rgb.tobytes()).hexdigest()))
        pixels = x * std + mean + random.normal(0, np.sqrt(self.variance), x.shape)
        return np.ascontiguousarray((np.clip(pixels, 0, 1) - mean) / std, dtype=np.float32), place


def measure(
    sensitivity: Sensitivity,
    model: Model,
    groups: Sequence[Sequence[Setting]],
    varied: Sequence[str],
    items: Sequence[Item],
    settings: Settings,
    params: Mapping[str, Params],
    against: Against,
    boxes: Annotations | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> None:
    """Explains and measures images under every setting of the groups, compares the settings of each group, and adds the
    results to `sensitivity`. A setting that several groups share is explained once. `progress` counts images explained
    and, where there are metrics of one map, maps measured.

    Raises `VisxError` before anything is computed where a metric of two maps does not fit maps of the input's size.
    """
    blank = np.zeros(model.input_size)
    for metric in sensitivity.metrics:
        if metric.kind == "pair":
            metric.run(blank, blank, params[metric.name])
    everything = [setting for group in groups for setting in group]
    if any(setting.noise for setting in everything) and any(spec.top for spec in settings.target.each):
        target, items = _pinned(sensitivity, model, items, settings, on_message)
        settings = dataclasses.replace(settings, target=target)
    single = [metric for metric in sensitivity.metrics if metric.kind != "pair"]
    network = model.black_box(settings.precision, model.device)
    ledger = Ledger(settings.out, settings.resume, settings.shard)
    maps: MapsBySetting = {}
    for seed, noise in dict.fromkeys((s.seed, s.noise) for s in everything):
        jobs = list(dict.fromkeys(s.job for s in everything if (s.seed, s.noise) == (seed, noise)))
        run = dataclasses.replace(settings, seed=seed)
        noisy = _noisy(model, noise, seed)
        explained = explain_all(noisy, jobs, items, run, progress, on_message)
        sensitivity.note(failure.as_dict() for failure in explained.errors)
        sensitivity.written += explained.written
        sensitivity.skipped += explained.skipped
        bench = Bench(Explainer(noisy, network, settings.batch_size, on_message), settings.seed, boxes, ledger)
        with network.session():
            for sample in explained.samples:
                values = _measured(sensitivity, bench, sample, single, params)
                maps.setdefault((sample.job, seed, noise), []).append((sample, values))
                progress.advance(len(single) > 0)
    for group, text in zip(groups, varied, strict=True):
        sensitivity.groups.append(_compare(model, group, text, maps, sensitivity.metrics, params, against))


def _measured(
    sensitivity: Sensitivity, bench: Bench, sample: Sample, metrics: Sequence[Metric], params: Mapping[str, Params]
) -> dict[str, float]:
    """The values of one map, by the metric's name; failures are added to `sensitivity`."""
    values: dict[str, float] = {}
    for metric in metrics:
        try:
            values[metric.name] = bench.measure(sample, metric, params[metric.name]).value
        except DiskFull:
            raise
        except VisxError as error:
            sensitivity.note([measuring_error(str(sample.item.path), sample.job.method.name, metric, error)])
    return values


def _compare(
    model: Model,
    group: Sequence[Setting],
    varied: str,
    maps: MapsBySetting,
    metrics: Sequence[Metric],
    params: Mapping[str, Params],
    against: Against,
) -> Group:
    result = Group(model.name, group[0].job.method.name, list(group), varied)
    for setting in group:
        for sample, values in maps.get((setting.job, setting.seed, setting.noise), ()):
            result.samples.setdefault((sample.item.name, sample.target), {})[setting.name] = sample
            image = str(sample.item.path)
            result.scores += [Score(image, sample.target, setting.name, "", n, v) for n, v in values.items()]
    names = [setting.name for setting in group]
    pairs = list(itertools.combinations(names, 2)) if against == "all-pairs" else [(names[0], n) for n in names[1:]]
    compared = [metric for metric in metrics if metric.kind == "pair"]
    for (_, target), row in result.samples.items():
        maps_of = {name: sample.map() for name, sample in row.items()} if compared else {}
        image = str(next(iter(row.values())).item.path)
        for (first, second), metric in itertools.product(pairs, compared):
            if first in maps_of and second in maps_of:
                value = metric.run(maps_of[first], maps_of[second], params[metric.name])
                result.scores.append(Score(image, target, first, second, metric.name, float(value)))
    return result


def _noisy(model: Model, variance: float, seed: int) -> Model:
    if not variance:
        return model
    plain = {f.name: getattr(model.preprocess, f.name) for f in dataclasses.fields(Preprocess)}
    noisy = NoisyPreprocess(**plain, variance=variance, seed=seed)
    return dataclasses.replace(model, name=f"{model.name}+noise{variance:g}", preprocess=noisy)


def _pinned(
    sensitivity: Sensitivity,
    model: Model,
    items: Sequence[Item],
    settings: Settings,
    on_message: Callable[[str], None],
) -> tuple[Target, list[Item]]:
    """The class of each image as the model predicts it without noise, as one target, so that noise does not change what is
    explained; and the images that could be predicted. The failures of others are added to `sensitivity`."""
    if settings.target.count > 1:
        raise usage("--vary noise follows one class an image", "--target top1, a class, or a table")
    table: dict[str, str] = {}
    rows = list(predictions(model, items, 1, settings.precision, settings.batch_size, on_message, settings.seed))
    for row in rows:
        if "predictions" in row:
            table[row["image"].replace("\\", "/")] = str(row["predictions"][0]["target"])
        else:
            sensitivity.note([{"image": row["image"], "method": None, "error": row["error"]}])
    whole = [item for item, row in zip(items, rows, strict=True) if "predictions" in row]
    return TargetSpec("top1", table=table), whole
