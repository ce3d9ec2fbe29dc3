"""The metrics, one a file. To add a metric: write `visx/metrics/NAME.py` and add a line to `visx/metrics/names.py`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from visx.errors import unknown, usage
from visx.metrics.names import METRICS, Kind

if TYPE_CHECKING:
    from visx.metrics.contract import Metric
    from visx.params import Params


def get_metric(name: str, kinds: Sequence[Kind] = (), where: str = "") -> Metric:
    """The metric called `name`. Only the module of that metric is imported, so that listing metrics stays fast.

    Raises `VisxError` (usage, exit 2) with near matches where there is no such metric, and where it is of none of `kinds`
    (if there are any); `where` is the command's name for that message.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    from visx.metrics.contract import REGISTRY

    importlib.import_module(f"visx.metrics.{name}")
    metric = REGISTRY[name]
    if kinds and metric.kind not in kinds:
        fitting = [m.name for m in all_metrics() if m.kind in kinds]
        raise usage(f"{where} cannot use the metric {name}: {metric.title}", f"these fit: {', '.join(fitting)}")
    return metric


def all_metrics() -> list[Metric]:
    """Every metric, in the order of the list."""
    return [get_metric(name) for name in METRICS]


def split_params(pairs: Iterable[str], chosen: Sequence[Metric]) -> tuple[list[str], dict[str, Params]]:
    """Divide `--param` pairs between methods and metrics.

    Returns the pairs for the methods, unparsed, and the parameters of every chosen metric by its name. Raises `VisxError`
    (usage, exit 2) for a value that a metric does not take.
    """
    from visx.params import assign, parse

    for_methods: list[str] = []
    for_metrics: list[str] = []
    for pair in pairs:
        owner, dot, _ = pair.partition("=")[0].partition(".")
        (for_metrics if dot and owner in METRICS else for_methods).append(pair)
    values = assign(for_metrics, {m.name: m.params for m in chosen})
    return for_methods, {m.name: parse(m.params, values[m.name], m.name) for m in chosen}
