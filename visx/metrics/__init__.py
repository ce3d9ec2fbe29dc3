"""The metrics, one a file. To add one: write `visx/metrics/NAME.py` and add NAME here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from visx.errors import unknown, usage
from visx.metrics.contract import REGISTRY, Kind, Metric
from visx.params import Params, assign, parse

NAMES = (
    "ssim",
    "spearman",
    "pearson",
    "hog",
    "top_k",
    "iou",
    "localisation",
    "pointing_game",
    "energy",
    "insertion",
    "deletion",
    "road",
    "average_drop",
    "increase",
    "completeness",
    "infidelity",
    "max_sensitivity",
    "grid_pointing",
    "randomization",
)


def get_metric(name: str, kinds: Sequence[Kind] = (), where: str = "") -> Metric:
    """The metric called `name`; only its own module is imported. A typo is a usage error with near matches, and so is
    a metric that is of none of `kinds`, said with the command's name `where`."""
    if name not in NAMES:
        raise unknown("metric", name, NAMES)
    importlib.import_module(f"visx.metrics.{name}")
    found = REGISTRY[name]
    if kinds and found.kind not in kinds:
        fitting = [m.name for m in all_metrics() if m.kind in kinds]
        raise usage(f"{where} cannot use the metric {name}: {found.title}", f"these fit: {', '.join(fitting)}")
    return found


def all_metrics() -> list[Metric]:
    """Every metric in listing order."""
    return [get_metric(name) for name in NAMES]


def split_params(pairs: Iterable[str], chosen: Sequence[Metric]) -> tuple[list[str], dict[str, Params]]:
    """Take `METRIC.KEY=VALUE` out of `--param` pairs: what is left for the methods, and every chosen metric's parameters."""
    rest: list[str] = []
    ours: list[str] = []
    for pair in pairs:
        owner, dot, _ = pair.partition("=")[0].partition(".")
        (ours if dot and owner in NAMES else rest).append(pair)
    dealt = assign(ours, {m.name: m.params for m in chosen})
    return rest, {m.name: parse(m.params, dealt[m.name], m.name) for m in chosen}
