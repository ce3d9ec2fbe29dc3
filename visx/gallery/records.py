"""What a page shows of a run: its results and failures from the manifest, and the tables of metrics beside it.

Lines of the manifest that are neither are counted and passed over: a page is also of use for a run that was damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visx.errors import usage
from visx.store.manifest import records
from visx.store.read import check_run, standing
from visx.store.record import Failure, Record, stays_inside

TABLES = ("evaluation.json", "evaluate.json", "sensitivity.json")
RECIPE = (
    "method", "params", "model", "weights", "score_kind", "seed", "device", "precision", "input_size", "rendering",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of one file of metrics: `columns` are their keys, `rows` their values."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class ReportedRun:
    """The results of a run in order, but for superseded ones, and `metrics`, the values measured on each; failures that no
    later result made good; tables; and how many lines were `skipped`."""

    folder: Path
    results: list[Record] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    errors: list[Failure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    skipped: int = 0


def read_run(folder: Path) -> ReportedRun:
    """The run in `folder`. Usage errors: no such folder, nothing in it that `visx explain` wrote."""
    check_run(folder, "the folder that `visx explain -o` wrote to")
    run = ReportedRun(folder)
    results: list[Record] = []
    errors: dict[tuple[str, str | None], Failure] = {}
    for record in records(folder):
        if isinstance(record, Failure) and record.image:
            errors[record.image, record.method] = record
        elif isinstance(record, Record) and record.image and record.method and stays_inside(record.npy):
            results.append(record)
            for failed in (record.method, None):  # None: the image itself could not be read
                errors.pop((record.image, failed), None)
        else:
            run.skipped += 1
    run.results, run.errors = standing(folder, results), list(errors.values())
    if not run.results and not run.errors:
        raise usage(f"no results in the manifest of {folder}")
    values: list[dict[str, Any]] = []
    for name in TABLES:
        rows, of_images = _read_table(folder / name)
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if _simple(value)))
            run.tables.append(Table(name, columns, [[row.get(key) for key in columns] for row in rows]))
        values += of_images
        if rows and not of_images:
            values += [
                {**row, "metric": f"{row.get('metric')} (mean of method)", "value": row.get("mean")} for row in rows
            ]
    run.metrics = _measured(run.results, values)
    return run


def numbers(record: Record, metrics: Mapping[str, float]) -> dict[str, float]:
    """Everything that a result can be sorted by besides its score: the method's own figures and the metrics."""
    return {str(k): float(v) for k, v in {**(record.extras or {}), **metrics}.items() if _number(v)}


def recipes(results: Iterable[Record]) -> tuple[list[dict[str, Any]], list[int]]:
    """What many results share, once each, and its number for every result."""
    known: dict[str, int] = {}
    shared: list[dict[str, Any]] = []
    which: list[int] = []
    for record in results:
        values = record.as_dict()
        recipe = {key: values.get(key) for key in RECIPE}
        key = json.dumps(recipe, sort_keys=True, default=str)
        if key not in known:
            known[key] = len(shared)
            shared.append(recipe)
        which.append(known[key])
    return shared, which


def _read_table(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows a method and metric, values an image) of a file of metrics; empty where there is none to be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return [], []
    rows = content.get("table", content.get("rows")) if isinstance(content, dict) else content
    values = content.get("values") if isinstance(content, dict) else None
    return list(_dicts(rows)), list(_dicts(values))


def _dicts(rows: Any) -> Iterator[dict[str, Any]]:
    return (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else iter(())


def _measured(results: Sequence[Record], values: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """For each result the metrics measured on it: same method, and same image and target where a value names them."""
    of_map: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for value in values:
        if _number(value.get("value")) and value.get("metric"):
            method = str(value.get("method")).split(".")[0]
            of_map.setdefault((method, value.get("image")), []).append(value)
    return [
        {
            str(value["metric"]): value["value"]
            for image in dict.fromkeys((None, record.folder, record.image))
            for value in of_map.get((record.method, image), ())
            if value.get("target") in (None, record.reference)
        }
        for record in results
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))
