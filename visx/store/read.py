"""Stored results: reading back what `visx explain` wrote, and trusting none of it. Imports no torch.

A `.npy` is mapped, never unpickled, and must be one finite map; a manifest must be of a schema that is known; a path in
it may not lead out of its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError, usage
from visx.files import SCHEMA_VERSION, digest
from visx.store.manifest import records, standing

if TYPE_CHECKING:
    import numpy as np


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


def target_of(record: Mapping[str, Any]) -> int | None:
    """The class index of a record, or the number of a regression's value; None where it has neither."""
    objective = record.get("objective")
    target = objective.get("index") if isinstance(objective, dict) else record.get("target")
    return target if isinstance(target, int) else None


@dataclass(frozen=True)
class Stored:
    """One result in a run's folder: its record in the manifest, and what tells it from others."""

    folder: Path
    record: dict[str, Any]

    @property
    def image(self) -> str:
        """The image's name relative to its run's input root."""
        return str(PurePosixPath(self.record["files"]["npy"]).parent)

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.record["method"])

    @property
    def layer(self) -> str:
        """The layer, or an empty string."""
        return str(self.record.get("layer") or "")

    @property
    def target(self) -> str:
        """The class index, the unit, or the number of the value that was explained."""
        return str(target_of(self.record))

    @property
    def settings(self) -> str:
        """A digest of parameters, score and seed: what may differ between two results of one method."""
        return digest([self.record.get(key) for key in ("params", "score_kind", "seed")])

    def map(self) -> np.ndarray:
        """The raw map (H, W) float64."""
        return read_map(self.folder / self.record["files"]["npy"])


def read_results(folder: Path) -> list[Stored]:
    """The results of a run, in order; of several records for one file the last counts.

    Usage errors (exit 2): no such folder, no manifest in it, no result in that. Failures (exit 1): a newer schema, a
    record without what every record has.
    """
    if not folder.is_dir():
        raise usage(f"no such folder: {folder}")
    if not any(folder.glob("manifest*.jsonl")):
        raise usage(f"no manifest.jsonl in {folder}", "a folder that `visx explain -o` wrote")
    found = [Stored(folder, record) for record in standing(folder, (s.record for s in _results(folder)))]
    if not found:
        raise usage(f"no results in the manifest of {folder}")
    return found


def _results(folder: Path) -> Iterator[Stored]:
    for record in records(folder):
        version = record.get("schema_version")
        if not isinstance(version, int):
            raise VisxError(f"the manifest of {folder} has a line without schema_version: visx did not write it")
        if version > SCHEMA_VERSION:
            raise VisxError(
                f"the manifest of {folder} is of schema {version}; this visx knows {SCHEMA_VERSION}",
                hint="a newer visx wrote it: update this one",
            )
        if "error" in record:
            continue
        files = record.get("files")
        name = files.get("npy") if isinstance(files, dict) else None
        if not isinstance(name, str) or not isinstance(record.get("method"), str):
            raise VisxError(f"the manifest of {folder}: a record has no method or no files.npy")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise VisxError(f"the manifest of {folder}: {name!r} leads out of the folder")
        yield Stored(folder, record)
