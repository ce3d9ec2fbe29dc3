"""The manifest: an append-only journal of results, one JSON object a line, and what it takes to resume from it.

One run at a time appends to `manifest.jsonl`; every shard has a journal of its own (`manifest.2-of-8.jsonl`). All of them
are read when a run looks for what is done. The index keeps two numbers a result, not the records, and reads of each line
only the part that names it (a million results: a gigabyte of manifest, seconds, and 150 MB of memory); a record is looked at
when it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

from visx.errors import VisxError
from visx.files import SCHEMA_VERSION, make_folder, to_json, unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".visx-lock"
_DEEPEST = 50  # levels of lists and objects in a record
# what resuming and the commands' output ask of a record
_KINDS: dict[str, type | tuple[type, ...]] = {
    "image": str,
    "method": str,
    "layer": (str, NoneType),
    "label": object,
    "probability": (int, float, NoneType),
    "name": str,
    "settings": str,
    "rank": int,
    "targets": int,
    "files": dict,
    "input_size": list,
    "warnings": list,
    "image_stat": list,
    "image_sha256": str,
    "rendering": (dict, NoneType),
    "raw_channels": bool,
}


class Journal:
    """The manifest of an output folder, or one shard's part of it. Use as a context manager to append."""

    def __init__(self, out: Path, shard: tuple[int, int] | None = None) -> None:
        self.out, self.shard = out, shard
        self.path = out / ("manifest.jsonl" if shard is None else f"manifest.{shard[0]}-of-{shard[1]}.jsonl")
        self._index: dict[int, int] = {}  # hash of what names a result -> which journal, and where in it
        self._others: dict[int, list[int]] = {}  # the same of a result that other journals have, too
        self._claims: dict[int, tuple[Path, int]] | None = (
            None  # hash of a map's name -> where the record is that claims it
        )
        self._journals: list[Path] = []
        self._file: BinaryIO | None = None
        self._locks: list[tuple[Path, BinaryIO]] = []

    def __enter__(self) -> Journal:
        make_folder(self.out)
        try:
            self._lock()
            self._mend()
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            self.__exit__()
            raise unwritable(self.path, error) from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        for path, file in self._locks:
            with contextlib.suppress(OSError):  # a lock shared with shards that still run stays theirs
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            file.close()
        self._file, self._locks = None, []

    def append(self, records: Sequence[dict[str, Any]]) -> list[str]:
        """Append the records of one job on one image in a single write, so that a kill leaves all of them or none.
        Returns their lines. A write that fails leaves no torn line."""
        assert self._file is not None, "the journal is not open"
        lines = [to_json(record) for record in records]
        data = "".join(line + "\n" for line in lines).encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise unwritable(self.path, error) from None
        return lines

    def read(self) -> None:
        """Index the results of every journal in the folder; of one journal's lines the later ones win."""
        self._journals = sorted(self.out.glob("manifest*.jsonl"))
        count = len(self._journals)
        for number, path in enumerate(self._journals):
            for offset, line in _lines(path):
                names = _names(line)
                if names is not None:
                    key = hash(names)
                    if key in self._index and self._index[key] % count != number:
                        self._others.setdefault(key, []).append(self._index[key])
                    self._index[key] = offset * count + number

    def find(self, name: str, settings: str) -> list[dict[str, Any]]:
        """The records of one job (by the digest of its settings) on one image, all of its targets; empty unless all are
        there. Whether the image is still the same is for the caller to see."""
        records: list[dict[str, Any]] = []
        while not records or len(records) < records[0]["targets"]:
            names = (name, settings, len(records))
            key = hash(names)
            places = [*self._others.get(key, ()), *([self._index[key]] if key in self._index else ())]
            read = [record for record in map(self._at, places) if record is not None and _sound(record)]
            same = [record for record in read if (record["name"], record["settings"], record["rank"]) == names]
            if not same:
                return []
            records.append(max(reversed(same), key=_modified))
        return records

    def _at(self, place: int) -> dict[str, Any] | None:
        offset, number = divmod(place, len(self._journals))
        with self._journals[number].open("rb") as file:
            file.seek(offset)
            return _parse(file.readline())

    def claimant(self, npy: str) -> dict[str, Any] | None:
        """The record that claims a map's file, as the journals stood when this was first asked; None if there is none."""
        if self._claims is None:
            self._claims = {}
            for path in sorted(self.out.glob("manifest*.jsonl")):
                for offset, line in _lines(path):
                    start = line.rfind(b', "files": ')
                    record = (_parse(b"{" + line[start + 2 :]) if start > 0 else None) or _parse(line) or {}
                    self._claims[hash(_map_of(record))] = path, offset
        if hash(npy) not in self._claims:
            return None
        path, offset = self._claims[hash(npy)]
        with path.open("rb") as file:
            file.seek(offset)
            claim = _parse(file.readline())
        return claim if claim is not None and _map_of(claim) == npy else None

    def _lock(self) -> None:
        """Refuse to write beside another run: a whole run excludes all others, a shard only its own like."""
        self._take(self.out / LOCK, exclusive=self.shard is None)
        if self.shard is not None:
            self._take(self.path.with_name(f"{LOCK}.{self.path.name}"), exclusive=True)

    def _take(self, path: Path, exclusive: bool) -> None:
        if fcntl is None:
            return
        while True:
            file = path.open("ab")
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise VisxError(
                    f"another run is writing to {self.out}", hint="wait for it, or give another --out"
                ) from None
            except OSError:  # a file system without locks: nothing to go by
                file.close()
                return
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                self._locks.append((path, file))
                return
            file.close()  # its last holder removed it between our opening and locking it

    def _mend(self) -> None:
        """Drop what an interrupted run left: a torn line. Errors go too, because their images are tried again."""
        beside = self.path.with_name(f".visx-tmp-{self.path.name}")
        beside.unlink(missing_ok=True)
        if not any(_worthless(line) for _, line in _lines(self.path)):
            return
        with beside.open("wb") as file:
            file.writelines(line for _, line in _lines(self.path) if not _worthless(line))
        beside.replace(self.path)


def records(out: Path) -> Iterator[dict[str, Any]]:
    """Every record in a folder's journals, in order; the lines that are not JSON objects are passed over."""
    for path in sorted(out.glob("manifest*.jsonl")):
        for _, line in _lines(path):
            record = _parse(line)
            if record is not None:
                yield record


def standing(out: Path, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several records that claim one file, or that answer one question of one image, the one that was written last, in
    order; the others are withdrawn.

    Journals of shards are read one after the other, so the time of the file's modification decides, and where that is not
    recorded the order. Two names may be one file (`Cat.png` and `cat.png` on some file systems); and one question has another
    file where the image or the labels have been edited, so that the likeliest class is another, or is called otherwise.
    """
    answers: dict[object, dict[str, Any]] = {}
    for number, record in enumerate(results):
        asked = [record.get(key) for key in ("image", "name", "settings", "rank")]
        question = number if None in asked else str(asked)
        if question not in answers or _modified(record) >= _modified(answers[question]):
            answers.pop(question, None)
            answers[question] = record
    kept: dict[object, dict[str, Any]] = {}
    for record in answers.values():
        name = str(_map_of(record))
        try:
            status = (out / name).stat()
            key: object = status.st_dev, status.st_ino
        except (OSError, ValueError):
            key = name
        if key not in kept or _modified(record) >= _modified(kept[key]):
            kept.pop(key, None)
            kept[key] = record
    return list(kept.values())


def _map_of(record: dict[str, Any]) -> str | None:
    files = record.get("files")
    name = files.get("npy") if isinstance(files, dict) else None
    return name if isinstance(name, str) else None


def _modified(record: dict[str, Any]) -> int:
    """When a record's map was written, in nanoseconds; 0 where it does not say."""
    written = record.get("written")
    of_map = written.get("npy") if isinstance(written, dict) else None
    time = of_map[1] if isinstance(of_map, list) and len(of_map) == 3 else 0
    return time if isinstance(time, int) else 0


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line, its newline included."""
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


def _worthless(line: bytes) -> bool:
    # inside a JSON string the quotes would be escaped, so this is the key
    return not line.endswith(b"\n") or b', "error": ' in line


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or (line.count(b"[") + line.count(b"{") > _DEEPEST and _deeper(record)):
        return None
    return record


def _names(line: bytes) -> tuple[str, str, int] | None:
    """What names the result on a line: its image's name, the digest of its settings and its rank; None if nothing does.

    They are in the last part of a record as visx writes it, so that the rest need not be parsed. Whether the record is
    sound is not asked.
    """
    start = line.rfind(b', "name": ')
    record = (_parse(b"{" + line[start + 2 :]) if start > 0 else None) or _parse(line) or {}
    name, settings, rank = record.get("name"), record.get("settings"), record.get("rank")
    if isinstance(name, str) and isinstance(settings, str) and isinstance(rank, int):
        return name, settings, rank
    return None


def _deeper(value: Any, left: int = _DEEPEST) -> bool:
    """Whether a JSON value is nested deeper than any that visx writes: it could be read, but not written again."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_deeper(v, left - 1) for v in inner)


def _sound(record: dict[str, Any]) -> bool:
    """Whether a record is a result of this schema that somebody has not taken apart."""
    whole = (
        record.get("schema_version") == SCHEMA_VERSION
        and "error" not in record
        and all(key in record and isinstance(record[key], kinds) for key, kinds in _KINDS.items())
    )
    files = whole and "overlay" in record["files"] and isinstance(record["files"].get("npy"), str)
    named = files and all(name is None or isinstance(name, str) for name in record["files"].values())
    return named and len(record["input_size"]) == 2 and all(isinstance(n, int) for n in record["input_size"])
