"""What a page shows of a run: its results and errors, read tolerantly from the manifest, and any metric tables beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from visx.errors import usage
from visx.store.manifest import records, standing
from visx.store.read import target_of

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
class Run:
    """A run's records in order, one a result; of several for one file the last counts. `skipped` were unusable."""

    folder: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    skipped: int = 0


def read_run(folder: Path) -> Run:
    """The run in `folder`. Usage errors: no such folder, nothing in it that `visx explain` wrote."""
    if not folder.is_dir():
        raise usage(f"no such folder: {folder}")
    if not any(folder.glob("manifest*.jsonl")):
        raise usage(f"no manifest.jsonl in {folder}", "the folder that `visx explain -o` wrote to")
    run = Run(folder)
    results: list[dict[str, Any]] = []
    errors: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records(folder):
        image, method = record.get("image"), record.get("method")
        if isinstance(record.get("error"), dict) and isinstance(image, str):
            errors[image, str(method)] = record
        elif isinstance(image, str) and isinstance(method, str) and inside(_files(record).get("npy")):
            results.append(record)
            for failed in (method, "None"):
                errors.pop((image, failed), None)
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
    _attach(run.results, values)
    return run


def inside(name: Any) -> bool:
    """Whether this is a path that stays in the run's folder."""
    if not isinstance(name, str) or not name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _files(record: Mapping[str, Any]) -> Mapping[str, Any]:
    files = record.get("files")
    return files if isinstance(files, dict) else {}


def links(record: Mapping[str, Any]) -> dict[str, str]:
    """A result's files by kind, those that stay in the folder."""
    return {str(kind): name for kind, name in _files(record).items() if inside(name)}


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Everything in a result that it can be sorted by besides its score: a method's figures and measured metrics."""
    found: dict[str, float] = {}
    for source in (record.get("extras"), record.get("metrics")):
        if isinstance(source, dict):
            found.update({str(k): float(v) for k, v in source.items() if _number(v)})
    return found


def recipes(results: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """What many results share, once each, and its number for every result."""
    known: dict[str, int] = {}
    shared: list[dict[str, Any]] = []
    which: list[int] = []
    for record in results:
        recipe = {key: record.get(key) for key in RECIPE}
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


def _attach(results: list[dict[str, Any]], values: list[dict[str, Any]]) -> None:
    """Give each result the metrics measured on it: same method, and same image and target where the value names them."""
    if not values:
        return
    by_method: dict[str, list[dict[str, Any]]] = {}
    for value in values:
        if _number(value.get("value")) and value.get("metric"):
            by_method.setdefault(str(value.get("method")).split(".")[0], []).append(value)
    for method, measured in by_method.items():
        of_image: dict[Any, list[dict[str, Any]]] = {}
        for value in measured:
            of_image.setdefault(value.get("image"), []).append(value)
        for record in results:
            if record["method"] != method:
                continue
            name = str(PurePosixPath(record["files"]["npy"]).parent)
            metrics = {
                str(value["metric"]): value["value"]
                for key in dict.fromkeys((None, name, record["image"]))
                for value in of_image.get(key, ())
                if value.get("target") in (None, target_of(record))
            }
            if metrics:
                record["metrics"] = {
                    **(record["metrics"] if isinstance(record.get("metrics"), dict) else {}),
                    **metrics,
                }


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))
