"""The manifest of an output folder: an append-only journal of results, a line each, and what it takes to resume from it.

A whole run appends to `manifest.jsonl`; every shard has a journal of its own (`manifest.2-of-8.jsonl`). All of them are read
when a run looks for what is done. The index keeps two numbers a result and no records, and of each line only the part that
names its result is read (a million results: a gigabyte of manifest, seconds, and 150 MB of memory); a record is read when it
is asked for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from visx.errors import VisxError
from visx.files import make_folder, unwritable
from visx.store import lines
from visx.store.lock import FolderLock
from visx.store.record import Failure, Record, is_failure, key_of, map_of, parse, parse_result
from visx.store.settings import sharded

_JOURNALS = "manifest*.jsonl"
_START = 1 << 20  # bytes of a manifest that tell whether a folder holds results


class Journal:
    """The manifest of an output folder, or one shard's part of it. Use as a context manager to append."""

    def __init__(self, out: Path, shard: tuple[int, int] | None = None) -> None:
        self.out = out
        self.path = out / sharded("manifest.jsonl", shard)
        self._lock = FolderLock(out, shard)
        self._file: BinaryIO | None = None
        self._journals: list[Path] = []
        self._index: dict[int, int] = {}  # hash of a result's key -> which journal, and where in it
        self._others: dict[int, list[int]] = {}  # the same of a result that other journals have, too
        self._maps: dict[int, tuple[Path, int]] | None = (
            None  # hash of a map's file -> journal and offset of its record
        )

    def __enter__(self) -> Journal:
        make_folder(self.out)
        try:
            self._lock.acquire()
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
        self._file = None
        with contextlib.suppress(VisxError, OSError):  # the system unlocks what the process cannot
            self._lock.release()

    def append(self, records: Sequence[Record | Failure]) -> None:
        """Append the records of one job on one image: a kill leaves all of them or none. `VisxError`: it cannot be written."""
        assert self._file is not None, "the journal is not open"
        lines.append(self._file, self.path, [record.line for record in records])

    def read(self) -> None:
        """Index the results of every journal in the folder; of the lines of one journal the later ones count."""
        self._journals = sorted(self.out.glob(_JOURNALS))
        count = len(self._journals)
        for number, path in enumerate(self._journals):
            for offset, line in lines.lines(path):
                names = key_of(line)
                if names is not None:
                    key = hash(names)
                    if key in self._index and self._index[key] % count != number:
                        self._others.setdefault(key, []).append(self._index[key])
                    self._index[key] = offset * count + number

    def find(self, name: str, settings: str) -> list[Record]:
        """The records of one job (by the digest of its settings) on one image, all of its targets; empty unless all are
        there, and whole. Whether the image is still the same is for the caller to see."""
        records: list[Record] = []
        count = len(self._journals)
        while not records or len(records) < records[0].targets:
            key = (name, settings, len(records))
            number = hash(key)
            places = [*self._others.get(number, ()), *([self._index[number]] if number in self._index else ())]
            read = [_record_at(self._journals[place % count], place // count) for place in places]
            same = [record for record in read if record is not None and record.key == key and record.is_whole]
            if not same:
                return []
            records.append(same[0] if len(same) == 1 else max(reversed(same), key=lambda record: record.map_time))
        return records

    def claimant(self, npy: str) -> Record | None:
        """The record whose map is the file `npy`, as the journals were when this was first asked; None if there is none."""
        if self._maps is None:
            self._maps = {
                hash(map_of(line)): (path, offset)
                for path in sorted(self.out.glob(_JOURNALS))
                for offset, line in lines.lines(path)
            }
        record = _record_at(*self._maps[hash(npy)]) if hash(npy) in self._maps else None
        return record if record is not None and record.npy == npy else None

    def _mend(self) -> None:
        """Drop what an interrupted run left: a torn line. Failures go too, because their images are tried again."""
        beside = self.path.with_name(f".visx-tmp-{self.path.name}")
        beside.unlink(missing_ok=True)
        if not any(_worthless(line) for _, line in lines.lines(self.path)):
            return
        with beside.open("wb") as file:
            file.writelines(line for _, line in lines.lines(self.path) if not _worthless(line))
        beside.replace(self.path)


def records(out: Path) -> Iterator[Record | Failure]:
    """What every line of a folder's journals says, in order; lines that are no JSON objects are passed over."""
    for path in sorted(out.glob(_JOURNALS)):
        for _, line in lines.lines(path):
            record = parse(line)
            if record is not None:
                yield record


def holds_results(folder: Path, names: Sequence[str]) -> bool:
    """Whether visx wrote results to a folder with files of these names: the beginning of a manifest in it has one."""
    for name in fnmatch.filter(names, _JOURNALS):
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            start = io.BytesIO(file.read(_START))
            if any(record.schema_version and record.npy for record in map(parse_result, start) if record):
                return True
    return False


def _worthless(line: bytes) -> bool:
    return lines.is_torn(line) or is_failure(line)


def _record_at(path: Path, offset: int) -> Record | None:
    with path.open("rb") as file:
        file.seek(offset)
        return parse_result(file.readline())
