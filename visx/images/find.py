"""Inputs: INPUT... on the command line -> image files and the folder each one's results go to.

Directories are walked recursively (symlink loops end; the output folder and those of older runs are skipped: their
overlays are pictures too), `-` reads paths from standard input. No two inputs ever share an output folder, and no name leads out of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from visx.errors import VisxError, printable, usage
from visx.images.decode import read, stat_of
from visx.images.formats import SUFFIXES, ending, is_other, passed_over, taken

HoldsResults = Callable[[Path, Sequence[str]], bool]  # of a folder, and the names of the files in it


@dataclass(frozen=True)
class Item:
    """One image file: where it is, and `name`, its results' folder relative to OUT (POSIX, never leading out).

    `trouble` says why there is nothing to read: a directory that cannot be listed is one item that fails, so that the
    others are done.
    """

    path: Path
    name: str
    trouble: str = ""

    def stat(self) -> tuple[int, int]:
        """Size in bytes and time of modification in nanoseconds; a VisxError says why there is none."""
        self._check()
        return stat_of(self.path)

    def read(self) -> bytes:
        """The file's bytes; a VisxError says why there are none."""
        self._check()
        return read(self.path)

    def _check(self) -> None:
        if self.trouble:
            raise VisxError(self.trouble)


def find(
    inputs: Sequence[str],
    out: Path | None = None,
    stdin: BinaryIO | None = None,
    nul: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
    holds_results: HoldsResults = lambda folder, names: False,
) -> list[Item]:
    """All images of `inputs` in a stable order; `on_message` hears of what was passed over: folders below the given ones that
    `holds_results` says are of older runs, and pictures of formats that cannot be read here.

    Usage errors: a missing path, a folder without images, a collision.
    """
    roots = list(dict.fromkeys(inputs))
    several = len(roots) > 1
    items: list[Item] = []
    others: list[str] = []
    for root in roots:
        if root == "-":
            items += _from_stdin(stdin, nul, out, on_message, others, holds_results)
            continue
        path = Path(root)
        if _is_dir(path):
            prefix = _name_of(path) if several else ""
            walked = [
                Item(file, _join(prefix, file.relative_to(path).as_posix()), trouble)
                for file, trouble in _walk(path, out, on_message, others, holds_results)
            ]
            if not walked:
                raise usage(f"no images in {root}", passed_over(others) or f"looked for {', '.join(sorted(SUFFIXES))}")
            items += walked
        elif os.path.lexists(path):
            items.append(Item(path, path.name))
        else:
            raise usage(f"no such file or directory: {root}")
    if others:
        on_message(passed_over(others))
    return _distinct(items, out)


def shard(items: Sequence[Item], number: int, count: int) -> list[Item]:
    """The items of shard `number` of `count`, counted from 1.

    A hash of its name assigns an item to a shard, so that other items in the list make no difference.
    """

    def place(item: Item) -> int:
        return int.from_bytes(hashlib.blake2b(os.fsencode(item.name), digest_size=8).digest(), "big")

    return [item for item in items if place(item) % count == number - 1]


def _walk(
    root: Path, out: Path | None, on_message: Callable[[str], None], others: list[str], holds_results: HoldsResults
) -> Iterator[tuple[Path, str]]:
    """The image files below `root`, sorted, each with an empty reason; then directories that cannot be listed, with the reason.

    Each real directory is entered once, so that symlink loops end. The endings of pictures in other formats are appended to
    `others`.
    """
    skip = out.resolve() if out else None
    seen: set[Path] = set()
    refused: list[OSError] = []
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refused.append):
        real = Path(folder).resolve()
        if real in seen or real == skip:
            subfolders.clear()
            continue
        seen.add(real)
        if Path(folder) != root and holds_results(Path(folder), files):
            on_message(f"passing over {printable(folder)}: results of an older run")
            subfolders.clear()
            continue
        subfolders.sort()
        for name in sorted(files):
            suffix = ending(name)
            if name.startswith("."):
                continue
            if taken(suffix):
                yield Path(folder, name), ""
            elif is_other(suffix):
                others.append(suffix)
    for error in refused:
        yield Path(error.filename), f"cannot read the directory: {error.strerror}"


def _from_stdin(
    stdin: BinaryIO | None,
    nul: bool,
    out: Path | None,
    on_message: Callable[[str], None],
    others: list[str],
    holds_results: HoldsResults,
) -> list[Item]:
    if stdin is None:
        raise usage("'-' reads paths from standard input, and there is none here")
    data = stdin.read()
    if not nul and b"\0" in data:
        raise usage("the paths on standard input are separated by NUL", "add -0")
    lines = data.split(b"\0") if nul else [line.rstrip(b"\r") for line in data.split(b"\n")]
    paths = [Path(os.fsdecode(line)) for line in lines if (line if nul else line.strip())]
    if not paths:
        raise usage("no paths on standard input")
    items = []
    for path in paths:
        if _is_dir(path):
            walked = _walk(path, out, on_message, others, holds_results)
            items += [Item(file, _contained(file), trouble) for file, trouble in walked]
        else:
            items.append(Item(path, _contained(path)))
    return items


def _is_dir(path: Path) -> bool:
    """Whether a path is a directory; False for a name that no file can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _contained(path: Path) -> str:
    """The path as a relative name without `.`, `..` or a root, so that it stays inside the output folder."""
    kept: list[str] = []
    for part in path.parts:
        if part == "..":
            kept = kept[:-1]
        elif part not in (path.anchor, "."):
            kept.append(part)
    return "/".join(kept) or path.name or "image"


def _name_of(root: Path) -> str:
    return root.resolve().name or "root"


def _join(prefix: str, name: str) -> str:
    return str(PurePosixPath(prefix) / name) if prefix else name


def _distinct(items: list[Item], out: Path | None) -> list[Item]:
    """The items without those listed twice.

    Raises `VisxError` (usage, exit 2) where two different files have one name, or names that are one in OUT's file system
    because they differ in capitals or in how an accent is encoded only.
    """
    by_name: dict[str, Item] = {}
    folded: dict[str, Item] = {}
    for item in items:
        other = by_name.setdefault(item.name, item)
        alike = folded.setdefault(unicodedata.normalize("NFC", item.name).casefold(), item)
        if alike.name != other.name and _one_name(alike.name, item.name, out):
            other = alike
        if other is not item and not _same_file(other.path, item.path):
            raise usage(
                f"{other.path} and {item.path} would both write to {item.name}/",
                "run them separately, or give the directory that holds both",
            )
    return list(by_name.values())


def _one_name(a: str, b: str, out: Path | None) -> bool:
    """Whether two names are one in OUT's file system, tried in the nearest existing folder."""
    folder = next((p for p in (out, *out.absolute().parents) if p.is_dir()), None) if out else None
    if folder is None:
        return False
    with (
        contextlib.suppress(OSError, ValueError),
        tempfile.TemporaryDirectory(dir=folder, prefix=".visx-tmp-") as trial,
    ):
        Path(trial, a).mkdir(parents=True)
        return Path(trial, b).exists()
    return False


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a == b
