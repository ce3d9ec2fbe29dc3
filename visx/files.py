"""Files that are written whole or not at all, and values as JSON."""

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


class DiskFull(VisxError):  # noqa: N818 (named like VisxError)
    """The disk has no room for results, so that trying the next image is of no use."""


def unwritable(path: Path, error: OSError) -> VisxError:
    """The error to raise where `path` cannot be written: `DiskFull` where the disk is full."""
    kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else VisxError
    return kind(f"cannot write {path}: {error.strerror or error}")


Written = list[
    Any
]  # a file's identity: [size in bytes, modification time in nanoseconds, first 16 hex digits of the sha256]


def write_whole(path: Path, data: bytes) -> Written:
    """Write `data` to a temporary file in the same folder and rename it, so that a reader sees all of the file or none.

    Returns the identity of the file for `still_there`. Raises `VisxError` where it cannot be written.
    """
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
    """Whether the file `name` in `out` still has the identity `written` that `write_whole` returned.

    A file with another modification time is read, because it may be a copy. (Files change where a result takes the place of
    another, or where a power cut leaves them empty.)
    """
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
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def make_folder(path: Path) -> None:
    """Create a folder and its parents, or remove the temporary files that an interrupted run left in it.

    The manifest's lock lets one run at a time write to a folder, so that temporary files of other processes are left over.
    Raises `VisxError` where the folder cannot be created.
    """
    try:
        if _create(path):
            return
        for temporary in path.glob(f"{_TEMPORARY}*"):
            ours = temporary.name.startswith(f"{_TEMPORARY}{os.getpid()}-")  # other threads may still write them
            if not ours and not temporary.is_dir():  # a directory is the results' folder of an image with such a name
                temporary.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise VisxError(f"cannot write to {path}: a file is in the way, where a folder is needed") from None
    except OSError as error:
        raise unwritable(path, error) from None


def _create(path: Path) -> bool:
    """Create a folder and its parents; returns False where it existed already."""
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
    """The bytes of a `.npy` file with the array as float32."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()


def to_json(record: Any) -> str:
    """The record as one line of JSON in ASCII; NaN and infinity become null."""
    try:
        return _JSON.encode(record)
    except ValueError:
        return _JSON.encode(_finite(record))


def digest(record: Any) -> str:
    """The first 16 hex digits of the sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    """The value with None for every NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
