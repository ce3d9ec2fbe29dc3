"""Inputs: INPUT... on the command line -> image files and the folder each one's results go to.

Directories are walked recursively (symlink loops end, the output folder is skipped), `-` reads paths from standard
input. No two inputs ever share an output folder, and no name leads out of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from visx.errors import VisxError, usage

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})


@dataclass(frozen=True)
class Item:
    """One image file: where it is, and `name`, its results' folder relative to OUT (POSIX, never leading out)."""

    path: Path
    name: str


def find(
    inputs: Sequence[str], out: Path | None = None, stdin: BinaryIO | None = None, nul: bool = False
) -> list[Item]:
    """All images of `inputs` in a stable order. Usage errors: a missing path, a folder without images, a collision."""
    roots = list(dict.fromkeys(inputs))
    several = len(roots) > 1
    items: list[Item] = []
    for root in roots:
        if root == "-":
            items += _from_stdin(stdin, nul)
            continue
        path = Path(root)
        if path.is_dir():
            prefix = _name_of(path) if several else ""
            found = [Item(file, _join(prefix, file.relative_to(path).as_posix())) for file in _walk(path, out)]
            if not found:
                raise usage(f"no images in {root}", f"looked for {', '.join(sorted(SUFFIXES))}")
            items += found
        elif path.exists():
            items.append(Item(path, path.name))
        else:
            raise usage(f"no such file or directory: {root}")
    return _distinct(items)


def shard(items: Sequence[Item], number: int, count: int) -> list[Item]:
    """The items of shard `number` of `count` (from 1), by a hash of their names: stable whatever else is in the list."""

    def place(item: Item) -> int:
        return int.from_bytes(hashlib.blake2b(os.fsencode(item.name), digest_size=8).digest(), "big")

    return [item for item in items if place(item) % count == number - 1]


def _walk(root: Path, out: Path | None) -> Iterator[Path]:
    """Image files below `root`, sorted; each real directory is entered once, so symlink loops end."""
    skip = out.resolve() if out else None
    seen: set[Path] = set()

    def refuse(error: OSError) -> None:
        raise VisxError(f"cannot read the directory {error.filename}: {error.strerror}")

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = Path(folder).resolve()
        if real in seen or real == skip:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(folder, name)


def _from_stdin(stdin: BinaryIO | None, nul: bool) -> list[Item]:
    if stdin is None:
        raise usage("'-' reads paths from standard input, and there is none here")
    separator = b"\0" if nul else b"\n"
    lines = stdin.read().split(separator)
    paths = [Path(os.fsdecode(line if nul else line.rstrip(b"\r"))) for line in lines if line.strip()]
    if not paths:
        raise usage("no paths on standard input")
    items = []
    for path in paths:
        if path.is_dir():
            items += [Item(file, _contained(file)) for file in _walk(path, None)]
        else:
            items.append(Item(path, _contained(path)))
    return items


def _contained(path: Path) -> str:
    """The path as a relative name without `.`, `..` or a root: it cannot lead out of the output folder."""
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


def _distinct(items: list[Item]) -> list[Item]:
    """Drop a file listed twice under one name; two different files under one name are a usage error."""
    by_name: dict[str, Item] = {}
    for item in items:
        other = by_name.setdefault(item.name, item)
        if other is not item and not _same_file(other.path, item.path):
            raise usage(
                f"{other.path} and {item.path} would both write to {item.name}/",
                "run them separately, or give the directory that holds both",
            )
    return list(by_name.values())


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a == b
