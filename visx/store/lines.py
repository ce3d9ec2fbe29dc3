"""Files of JSON lines: one JSON object a line, appended; a kill leaves at most a torn last line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from visx.errors import VisxError
from visx.files import unwritable

_DEEPEST = 50  # levels of lists and objects in a line


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line of a file, its newline included; nothing where there is no file."""
    offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                yield offset, line
                offset += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None for anything else, and for one nested deeper than any that visx writes."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or (line.count(b"[") + line.count(b"{") > _DEEPEST and _deeper(values)):
        return None
    return values


def append(file: BinaryIO, path: Path, texts: list[str]) -> None:
    """Append lines to `file`, which is open without a buffer, in a single write: a kill leaves all of them or none.
    A write that fails leaves no torn line and raises `VisxError`, `DiskFull` where there is no room; `path` is named in it."""
    data = "".join(text + "\n" for text in texts).encode()
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        file.truncate(end)
        raise unwritable(path, error) from None


def is_torn(line: bytes) -> bool:
    """Whether a line was cut off: a kill came while it was written."""
    return not line.endswith(b"\n")


def _deeper(value: Any, left: int = _DEEPEST) -> bool:
    """Whether a JSON value is nested deeper than `left` levels: it could be read, but not written again."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_deeper(v, left - 1) for v in inner)
