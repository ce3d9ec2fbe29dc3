"""What the commands that measure maps share: thresholds, annotated boxes, and telling what failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visx.errors import printable, usage

if TYPE_CHECKING:
    from visx.metrics.common.regions import Annotations
    from visx.metrics.contract import Metric

Boxes = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="DIR|FILE.csv",
        help="Annotated boxes: Pascal VOC XML files named like the images, or image,left,top,right,bottom.",
        show_default=False,
    ),
]


def thresholds(option: str, pairs: Sequence[str] | None) -> dict[str, float]:
    """`METRIC=VALUE` pairs of an option such as `--min`; the metrics' names are checked by who knows them."""
    found: dict[str, float] = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not name:
            raise usage(f"{option} {pair!r} is not METRIC=VALUE", f"for instance {option} spearman=0.9")
        found[name.strip()] = number
    return found


def annotated(metrics: Sequence[Metric], boxes: Path | None) -> Annotations | None:
    """`--boxes` for metrics that need some; a usage error where they are missing."""
    from visx.metrics.common.regions import Annotations

    boxed = [metric.name for metric in metrics if metric.kind == "box"]
    if boxed and boxes is None:
        raise usage(f"{', '.join(boxed)} needs --boxes", "a folder of Pascal VOC XML files, or a CSV")
    if boxes is not None and not boxes.exists():
        raise usage(f"no such file or folder: {boxes}")
    return Annotations(boxes) if boxed and boxes is not None else None


def failure(error: Mapping[str, Any]) -> str:
    """What failed, as a line: the image or the method, the metric, the reason and what to do."""
    where = [error["image"] or error["method"], error.get("metric") or "", error["error"]["message"]]
    hint = error["error"]["hint"]
    return printable(": ".join(filter(None, where)) + (f" ({hint})" if hint else ""))
