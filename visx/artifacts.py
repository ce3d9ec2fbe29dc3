"""Artifacts: files that appear whole or not at all, and the manifest, an append-only journal of results."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from visx.errors import VisxError

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1
MANIFEST = "manifest.jsonl"
_TEMPORARY = ".visx-tmp-"


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename: a reader sees all of it or none."""
    temporary = path.with_name(
        f"{_TEMPORARY}{os.getpid()}-{hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()}"
    )
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise VisxError(f"cannot write {path}: {error.strerror or error}") from None


def make_folder(path: Path) -> None:
    """Create a folder and its parents; clear what an interrupted run left half-written in it."""
    own = f"{_TEMPORARY}{os.getpid()}-"  # another thread of this process may be writing it just now
    try:
        path.mkdir(parents=True, exist_ok=True)
        for stale in path.glob(f"{_TEMPORARY}*"):
            if not stale.name.startswith(own):
                stale.unlink(missing_ok=True)
    except OSError as error:
        raise VisxError(f"cannot write to {path}: {error.strerror or error}") from None


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a float32 `.npy` file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()


def to_json(record: Any) -> str:
    """One line of JSON, always ASCII; a NaN or an infinity in it is written as null."""
    return json.dumps(_finite(record), ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def digest(record: Any) -> str:
    """A short name for a JSON value: the first 16 hex digits of its sha256, keys sorted."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


class Manifest:
    """`OUT/manifest.jsonl`: one object a result. A torn last line is dropped when it is opened."""

    def __init__(self, out: Path) -> None:
        self.path = out / MANIFEST
        self._file: BinaryIO | None = None

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that are there, in order; lines that are not JSON objects are passed over."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                for line in file:
                    record = _parse(line)
                    if record is not None:
                        yield record
        except OSError as error:
            raise VisxError(f"cannot read {self.path}: {error.strerror or error}") from None

    def open(self) -> None:
        """Open for appending, and mend the journal: a torn last line goes, and so do errors (they are tried again)."""
        make_folder(self.path.parent)
        try:
            if self.path.exists():
                self._mend(self.path.read_bytes())
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise VisxError(f"cannot write {self.path}: {error.strerror or error}") from None

    def _mend(self, data: bytes) -> None:
        lines = data.splitlines(keepends=True)
        kept = []
        for line in lines:
            record = _parse(line)
            if record is not None and line.endswith(b"\n") and "error" not in record:
                kept.append(line)
        if len(kept) != len(lines):
            write_whole(self.path, b"".join(kept))

    def append(self, line: str) -> None:
        """Append one line (without its newline) in a single write."""
        assert self._file is not None, "the manifest is not open"
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            raise VisxError(f"cannot write {self.path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the journal; appending again needs `open`."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
