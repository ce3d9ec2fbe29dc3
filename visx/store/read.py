"""Stored results: what `visx explain` wrote, read back; nothing in it is trusted. Imports no torch.

A `.npy` is mapped, never unpickled, and must be one finite map; a manifest must be of a schema that is known; a path in it
may not lead out of its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visx.errors import VisxError, usage
from visx.files import SCHEMA_VERSION
from visx.store.manifest import records
from visx.store.record import Failure, Record, stays_inside

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Stored:
    """A result in the folder of its run."""

    run: Path
    record: Record

    @property
    def path(self) -> Path:
        """The file of the map."""
        return self.run / self.record.npy

    def map(self) -> np.ndarray:
        """The raw map (H, W) float64; `VisxError` where it cannot be read."""
        return read_map(self.path)


def read_map(path: Path) -> np.ndarray:
    """A `.npy` of one map -> (H, W) float64. Raises `VisxError` for anything else: objects, NaN, other shapes, no file."""
    import numpy as np

    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever numpy's header parser meets: its tokenizer's errors get through too
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise VisxError(f"cannot read the map {path}: {reason}", hint="a .npy file of numbers, (H, W)") from None
    if mapped.dtype.kind not in "fiub" or mapped.ndim != 2:
        raise VisxError(f"{path} is no map: {mapped.dtype} {tuple(mapped.shape)}", hint="numbers of shape (H, W)")
    values = np.array(mapped, dtype=np.float64)
    if not np.isfinite(values).all():
        raise VisxError(f"the map {path} holds NaN or infinity", hint="visx never writes such a file: make it again")
    return values


def read_results(folder: Path) -> list[Stored]:
    """The results of a run, in order, but for superseded ones.

    Usage errors (exit 2): no such folder, no manifest in it, no result in that. Failures (exit 1): a newer schema, a
    record without what every record has.
    """
    check_run(folder, "a folder that `visx explain -o` wrote")
    results = [Stored(folder, record) for record in standing(folder, _results(folder))]
    if not results:
        raise usage(f"no results in the manifest of {folder}")
    return results


def check_run(folder: Path, hint: str) -> None:
    """A usage error, with this hint, where `folder` is not the folder of a run."""
    if not folder.is_dir():
        raise usage(f"no such folder: {folder}")
    if not any(folder.glob("manifest*.jsonl")):
        raise usage(f"no manifest.jsonl in {folder}", hint)


def standing(run: Path, results: Iterable[Record]) -> list[Record]:
    """The results that still stand, in order. Of several that claim one file, or that answer one question of one image, the
    one that was written last stands; the others are superseded.

    Journals of shards are read one after the other, so the time of the file's modification decides, and where that is not
    recorded the order. Two names may be one file (`Cat.png` and `cat.png` on some file systems); and one question has another
    file where the image or the labels have been edited, so that the likeliest class is another, or is called otherwise.
    """
    answers: dict[object, Record] = {}
    for number, record in enumerate(results):
        _supersede(answers, (record.image, *record.key) if record.has_key else number, record)
    files: dict[object, Record] = {}
    for record in answers.values():
        try:
            status = (run / record.npy).stat()
            _supersede(files, (status.st_dev, status.st_ino), record)
        except (OSError, ValueError):  # no such file, or a name that no file can have
            _supersede(files, record.npy, record)
    return list(files.values())


def _supersede(latest: dict[object, Record], key: object, record: Record) -> None:
    """Keep a record under `key`, as the last one, unless one is there that was written after it."""
    if key not in latest or record.map_time >= latest[key].map_time:
        latest.pop(key, None)
        latest[key] = record


def _results(folder: Path) -> Iterator[Record]:
    for record in records(folder):
        if not record.schema_version:
            raise VisxError(f"the manifest of {folder} has a line without schema_version: visx did not write it")
        if record.schema_version > SCHEMA_VERSION:
            raise VisxError(
                f"the manifest of {folder} is of schema {record.schema_version}; this visx knows {SCHEMA_VERSION}",
                hint="a newer visx wrote it: update this one",
            )
        if isinstance(record, Failure):
            continue
        if not record.npy or not record.method:
            raise VisxError(f"the manifest of {folder}: a record has no method or no files.npy")
        if not stays_inside(record.npy):
            raise VisxError(f"the manifest of {folder}: {record.npy!r} leads out of the folder")
        yield record
