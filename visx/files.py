"""Artifacts: files that appear whole or not at all, and values as JSON."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1
_TEMPORARY = ".visx-tmp-"
_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


class DiskFull(VisxError):  # noqa: N818 (a VisxError, as its kin)
    """There is no room for results: no use in going on with the next image."""


def unwritable(path: Path, error: OSError) -> VisxError:
    """What to raise where `path` cannot be written."""
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else VisxError
    return kind(f"cannot write {path}: {error.strerror or error}")


Written = list[Any]  # [size in bytes, time of modification in nanoseconds, first 16 hex digits of the sha256]


def write_whole(path: Path, data: bytes) -> Written:
    """Write `data` beside `path` and rename: a reader sees all of it or none. Returns what to know the file by."""
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{name}")
    try:
        try:
            temporary.write_bytes(data)
            modified = temporary.stat().st_mtime_ns
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from None
    return [len(data), modified, hashlib.sha256(data).hexdigest()[:16]]


def still_there(out: Path, name: str, written: object) -> bool:
    """Whether the file `name` in `out` is what `write_whole` said of it. One of another time of modification is read: it may
    have been copied. (A result can take another's place; a power cut can leave files empty.)"""
    if not isinstance(written, list) or len(written) != 3:
        return False
    try:
        path = out / name
        status = path.stat()
        if status.st_size != written[0]:
            return False
        if status.st_mtime_ns == written[1]:
            return True
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] == written[2]
    except (OSError, ValueError):  # no such file, or a name that no file can have
        return False


def make_folder(path: Path) -> None:
    """Create a folder and its parents; clear what a run that died left half-written in it.

    Only one run at a time writes to a folder (the journal's lock), so whatever is not this process's is left over.
    """
    try:
        if _is_new(path):
            return
        for temporary in path.glob(f"{_TEMPORARY}*"):
            ours = temporary.name.startswith(f"{_TEMPORARY}{os.getpid()}-")  # our other threads are still at theirs
            if not ours and not temporary.is_dir():  # a folder is some image's of that name
                temporary.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise VisxError(f"cannot write to {path}: a file is in the way, where a folder is needed") from None
    except OSError as error:
        raise unwritable(path, error) from None


def _is_new(path: Path) -> bool:
    """Create a folder and its parents; whether it was not there before."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    except FileNotFoundError:
        path.mkdir(parents=True, exist_ok=True)
    return True


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a float32 `.npy` file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()


def to_json(record: Any) -> str:
    """One line of JSON, always ASCII; a NaN or an infinity in it is written as null."""
    try:
        return _JSON.encode(record)
    except ValueError:
        return _JSON.encode(_finite(record))


def digest(record: Any) -> str:
    """A short name for a JSON value: the first 16 hex digits of its sha256, keys sorted."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
