"""Evaluation: the maps of several methods measured with several metrics; means over images with bootstrapped intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visx.engine.explainer import Explainer
from visx.engine.jobs import Job
from visx.errors import ExitCode, VisxError, unsupported
from visx.evaluate.bench import Bench, Explained, Sample, explain_all
from visx.evaluate.ledger import Ledger
from visx.files import DiskFull
from visx.images.find import Item
from visx.metrics.common.regions import Annotations
from visx.metrics.contract import Measured, Metric, Survey, Trial
from visx.models import Model
from visx.network.anatomy import ONLY_SCORES
from visx.network.network import Network
from visx.network.randomize import cascade
from visx.params import Params
from visx.run.progress import SILENT, Progress
from visx.store.settings import Settings

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Value:
    """One measured value: of one image's map, or, from a metric that measures many images together, of one of its cases."""

    job: str
    metric: str
    image: str
    target: int | str
    measured: Measured


@dataclass(frozen=True)
class Row:
    """One row of the table, the values of one method by one metric: their mean, its bootstrapped 95% interval (None for a
    single value), their number, and whether no other method has a better mean."""

    job: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    count: int
    best: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"method": self.job, **{k: v for k, v in dataclasses.asdict(self).items() if k != "job"}}


@dataclass
class Evaluation:
    """All values, the table (`rows`), what failed ({image, method, metric, error}), and how many maps were `reused`."""

    metrics: list[Metric]
    values: list[Value] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    reused: int = 0

    @property
    def code(self) -> ExitCode:
        """The exit code: OK, SOME_FAILED, or FAILURE where nothing could be measured."""
        if not self.errors:
            return ExitCode.OK
        return ExitCode.SOME_FAILED if self.values else ExitCode.FAILURE


def evaluate(
    model: Model,
    jobs: Sequence[Job],
    items: Sequence[Item],
    settings: Settings,
    metrics: Sequence[Metric],
    params: Mapping[str, Params],
    boxes: Annotations | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Explains images that are not explained yet, measures every map with every metric, and makes the table. `progress`
    counts images explained and maps measured."""
    explained = explain_all(model, jobs, items, settings, progress, on_message)
    evaluation = Evaluation(list(metrics), reused=explained.skipped)
    evaluation.errors += [
        {"image": e.image, "method": e.method, "metric": None, "error": e.error} for e in explained.errors
    ]
    names = job_names(jobs)
    network = model.black_box(settings.precision, model.device)
    ledger = Ledger(settings.out, settings.resume, settings.shard)
    bench = Bench(Explainer(model, network, settings.batch_size, on_message), settings.seed, boxes, ledger)
    with network.session():
        _measure_maps(evaluation, explained, bench, names, metrics, params, progress)
        for metric in metrics:
            if metric.kind == "set":
                for job in jobs:
                    _measure_set(
                        evaluation,
                        [s for s in explained.samples if s.job is job],
                        bench,
                        names[id(job)],
                        metric,
                        params,
                    )
    evaluation.rows = summarise(evaluation.values, list(names.values()), metrics, settings.seed)
    return evaluation


def job_names(jobs: Sequence[Job]) -> dict[int, str]:
    """A short name for each job, by the job's id: the method, followed by the layer where the method runs on several."""
    names: dict[int, str] = {}
    methods = [job.method.name for job in jobs]
    for job in jobs:
        several = methods.count(job.method.name) > 1
        names[id(job)] = f"{job.method.name}.{job.layer}" if several else job.method.name
    return names


def _measure_maps(
    evaluation: Evaluation,
    explained: Explained,
    bench: Bench,
    names: Mapping[int, str],
    metrics: Sequence[Metric],
    params: Mapping[str, Params],
    progress: Progress,
) -> None:
    for sample in explained.samples:
        for metric in metrics:
            if metric.kind == "set":
                continue
            try:
                measured = bench.measure(sample, metric, params[metric.name])
            except DiskFull:
                raise
            except VisxError as error:
                evaluation.errors.append(measuring_error(str(sample.item.path), sample.job.method.name, metric, error))
                continue
            name = names[id(sample.job)]
            evaluation.values.append(Value(name, metric.name, str(sample.item.path), sample.target, measured))
        progress.advance()


def _measure_set(
    evaluation: Evaluation, samples: list[Sample], bench: Bench, name: str, metric: Metric, params: Mapping[str, Params]
) -> None:
    if not samples:
        return
    survey = Survey(
        _Trials(bench, samples),
        [s.target for s in samples],
        [math.nan if s.record.probability is None else s.record.probability for s in samples],
        bench.seed,
        lambda count: _randomized(bench, samples, count),
    )
    try:
        measured = metric.run(survey, params[metric.name])
    except VisxError as error:
        evaluation.errors.append(measuring_error(None, name, metric, error))
        return
    whole = len(measured) == len(samples)
    for i, one in enumerate(measured):
        sample = samples[i] if whole else None
        target = sample.target if sample else one.details.get("target", -1)
        evaluation.values.append(Value(name, metric.name, str(sample.item.path) if sample else "", target, one))


class _Trials(Sequence[Trial]):
    """A sequence of trials, each made when it is read, so that a folder of images need not fit into memory."""

    def __init__(self, bench: Bench, samples: Sequence[Sample]) -> None:
        self.bench, self.samples = bench, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.bench.trial(self.samples[index])

    def __iter__(self) -> Iterator[Trial]:
        return (self.bench.trial(sample) for sample in self.samples)


def _randomized(bench: Bench, samples: Sequence[Sample], count: int) -> Iterator[tuple[str, Iterable[np.ndarray]]]:
    before = bench.explainer.network
    if not isinstance(before, Network):
        raise unsupported(f"its parameters cannot be made random: {ONLY_SCORES}")
    for stage, module in cascade(before.module, count, bench.seed):
        network = Network(
            module,
            channels_last=before.channels_last,
            outputs=lambda: before.outputs,
            behaviour=lambda: before.behaviour,
        )
        with network.session():

            def maps(explainer: Explainer) -> Iterator[np.ndarray]:
                for sample in samples:
                    yield bench.explain(explainer, sample, bench.input(sample.item)[None])[0]

            yield stage, maps(bench.explainer.on(network))


def summarise(values: Sequence[Value], jobs: Sequence[str], metrics: Sequence[Metric], seed: int) -> list[Row]:
    """A row for every method and metric that has values. The best mean of each metric is marked; of equal ones, all."""
    rows: list[Row] = []
    for metric in metrics:
        table = []
        for job in dict.fromkeys(jobs):
            some = [v for v in values if v.job == job and v.metric == metric.name]
            if some:
                numbers = np.array([v.measured.value for v in some])
                classes = np.array([v.target for v in some]) if metric.average == "class" else None
                mean, low, high = bootstrap(numbers, classes, seed)
                table.append(Row(job, metric.name, mean, low, high, len(some), False))
        if table:
            best = (max if metric.better == "higher" else min)(row.mean for row in table)
            rows += [dataclasses.replace(row, best=row.mean == best and len(table) > 1) for row in table]
    return rows


def average(values: np.ndarray, classes: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
    """The means (...) of values (..., n). Where classes (..., n) are given, values are averaged within each class first.

    `axis` must be the last one; `scipy.stats.bootstrap` passes it.
    """
    assert axis == -1
    if classes is None:
        return np.asarray(values.mean(-1))
    rows = values.reshape(-1, values.shape[-1])
    names, numbers = np.unique(classes, return_inverse=True)
    cells = (
        numbers.reshape(rows.shape) + len(names) * np.arange(len(rows))[:, None]
    ).ravel()  # one for each row and class
    size = len(rows) * len(names)
    with np.errstate(invalid="ignore"):  # a resample may lack a class: 0 / 0
        means = np.bincount(cells, rows.ravel(), size) / np.bincount(cells, minlength=size)
    return np.asarray(np.nanmean(means.reshape(len(rows), -1), -1).reshape(values.shape[:-1]))


def bootstrap(values: np.ndarray, classes: np.ndarray | None, seed: int) -> tuple[float, float | None, float | None]:
    """The `average` of values (n,), and the ends of its bootstrapped interval: the 95 % percentile interval of 2000
    resamples of the images. The ends are None for a single value.
    """
    mean = float(average(values, classes))
    if len(values) < 2:
        return mean, None, None
    from scipy import stats

    interval = stats.bootstrap(
        (values,) if classes is None else (values, classes), average, paired=True, vectorized=True,
        n_resamples=RESAMPLES, batch=max(1, 10**6 // len(values)), confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return mean, float(interval.low), float(interval.high)


def curves(evaluation: Evaluation) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By metric, then by method: the mean curve [(x, y), ...] over images, of metrics that have curves. All curves of a
    metric have the same x."""
    mean: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for metric in evaluation.metrics:
        for value in evaluation.values:
            if value.metric == metric.name and value.measured.curve and value.job not in mean.get(metric.name, {}):
                all_curves = [
                    v.measured.curve for v in evaluation.values if (v.job, v.metric) == (value.job, value.metric)
                ]
                points = np.array(all_curves).mean(0)
                mean.setdefault(metric.name, {})[value.job] = [(float(x), float(y)) for x, y in points]
    return mean


def measuring_error(image: str | None, method: str, metric: Metric, error: VisxError) -> dict[str, Any]:
    """What `Evaluation.errors` holds of a metric that could not be measured, as JSON."""
    return {
        "image": image,
        "method": method,
        "metric": metric.name,
        "error": {"code": int(error.code), "message": error.message, "hint": error.hint},
    }
