"""The files of `visx evaluate`: JSON, CSV with a row for each value, and a plot of the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from visx.evaluate.evaluate import Evaluation, curves
from visx.files import SCHEMA_VERSION, make_folder, to_json, write_whole
from visx.models import Model
from visx.store.settings import Settings, sharded


def csv_bytes(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """The bytes of a CSV file: UTF-8, undecodable bytes of file names escaped, numbers with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def write_evaluation(settings: Settings, evaluation: Evaluation, model: Model) -> Path:
    """Writes the files of an evaluation, and returns the path of `evaluation.json`.

    That one has the table and every value with its details, `evaluation.csv` every value, `evaluation.png` the mean curves,
    where there are any. Raises `VisxError` where a file cannot be written.
    """
    from visx.draw.curves import plot_curves

    mean_curves = curves(evaluation)
    record = {
        "schema_version": SCHEMA_VERSION,
        "model": model.name,
        "weights": model.weights.sha256,
        "metrics": [{"name": m.name, "better": m.better, "low": m.low, "high": m.high} for m in evaluation.metrics],
        "table": [row.as_dict() for row in evaluation.rows],
        "values": [
            {"image": v.image or None, "method": v.job, "target": v.target, "metric": v.metric, "value": v.measured.value,
             "details": v.measured.details, "curve": v.measured.curve}
            for v in evaluation.values
        ],
        "errors": evaluation.errors,
    }  # fmt: skip
    make_folder(settings.out)
    path, table, picture = (
        settings.out / sharded(f"evaluation.{suffix}", settings.shard) for suffix in ("json", "csv", "png")
    )
    write_whole(path, to_json(record).encode() + b"\n")
    rows = [(v.image, v.job, v.target, v.metric, v.measured.value) for v in evaluation.values]
    write_whole(table, csv_bytes(("image", "method", "target", "metric", "value"), rows))
    if mean_curves:
        write_whole(picture, plot_curves(mean_curves))
    return path
