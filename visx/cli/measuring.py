"""What the commands that measure maps share: metrics with their parameters, annotated boxes, and thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visx.cli.prepare import split
from visx.errors import usage

if TYPE_CHECKING:
    from visx.metrics.common.regions import Annotations
    from visx.metrics.contract import Kind, Metric
    from visx.params import Params

Boxes = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="DIR|FILE.csv",
        help="Annotated boxes: Pascal VOC XML files named like the images, or image,left,top,right,bottom.",
        show_default=False,
    ),
]


@dataclass(repr=False, eq=False)
class Measuring:
    """The metrics of a command and their parameters by name; `method_pairs` are the `--param` pairs of the methods, `boxes`
    the annotations where a metric needs some."""

    metrics: list[Metric]
    params: dict[str, Params]
    method_pairs: list[str]
    boxes: Annotations | None


def choose_metrics(
    command: str,
    names: Sequence[str] | None,
    default: Sequence[str],
    kinds: Sequence[Kind],
    pairs: Sequence[str],
    boxes: Path | None = None,
    preset_pairs: Sequence[str] = (),
) -> Measuring:
    """The metrics that `--metrics` names, which must be of these kinds, with their part of the `--param` pairs.

    `preset_pairs` count where their metric is chosen. Raises a usage error for unknown names, a metric of another kind, a wrong parameter, and boxes that are missing.
    """
    from visx.metrics import get_metric, split_params

    metrics = [get_metric(name, kinds, command) for name in split(names, default)]
    annotations = _annotations(metrics, boxes)
    chosen = {metric.name for metric in metrics}
    preset = [pair for pair in preset_pairs if pair.partition(".")[0] in chosen]
    method_pairs, params = split_params([*preset, *pairs], metrics)
    return Measuring(metrics, params, method_pairs, annotations)


def thresholds(option: str, pairs: Sequence[str] | None) -> dict[str, float]:
    """The `METRIC=VALUE` pairs of an option such as `--min`, by metric. Whether a metric is known is not checked here."""
    values: dict[str, float] = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not name:
            raise usage(f"{option} {pair!r} is not METRIC=VALUE", f"for instance {option} spearman=0.9")
        values[name.strip()] = number
    return values


def _annotations(metrics: Sequence[Metric], boxes: Path | None) -> Annotations | None:
    """The annotations in `--boxes`, where a metric needs some. A usage error where they are missing."""
    from visx.metrics.common.regions import Annotations

    boxed = [metric.name for metric in metrics if metric.kind == "box"]
    if boxed and boxes is None:
        raise usage(f"{', '.join(boxed)} needs --boxes", "a folder of Pascal VOC XML files, or a CSV")
    if boxes is not None and not boxes.exists():
        raise usage(f"no such file or folder: {boxes}")
    return Annotations(boxes) if boxed and boxes is not None else None
