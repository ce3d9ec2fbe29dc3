"""Class names from a file, a list or a mapping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from numbers import Integral
from pathlib import Path
from typing import Any

from visx.errors import usage


def labels_of(labels: Any) -> tuple[str, ...]:
    """The class names in a file, in an iterable of names, or in a mapping as in `read_labels`.

    Raises `VisxError` (usage, exit 2) for anything else.
    """
    if isinstance(labels, (str, Path)):
        return read_labels(Path(labels))
    try:
        if isinstance(labels, (Set, bytes)):
            raise TypeError(f"a {type(labels).__name__} says not which class has which name")
        names = _from_json(dict(labels) if isinstance(labels, Mapping) else list(labels))
    except (ValueError, TypeError, KeyError) as error:
        raise usage(
            f"labels are {labels!r:.60}: {error}", "a file, a list of names, or {0: name, 1: name, ...}"
        ) from None
    if not names:
        raise usage("labels hold no names", "None where they are not known")
    return names


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a file: one a line, a JSON list, or a JSON object.

    An object maps indices to names, indices to [id, name] as in Keras, or names to indices. Raises `VisxError` (usage, exit 2)
    where the file cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"cannot read the labels {path}: {getattr(error, 'strerror', None) or error}") from None
    if text.lstrip()[:1] not in ("[", "{"):
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        try:
            names = _from_json(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise usage(f"{path} is not a JSON list or object of labels: {error}") from None
    if not names:
        raise usage(f"{path} holds no labels")
    return names


def _from_json(content: Any) -> tuple[str, ...]:
    """The names in a list or mapping. Raises ValueError, TypeError or KeyError where it holds something else."""

    def name(entry: Any) -> str:
        if entry is None:
            raise ValueError("a class has no name")
        return str(entry[-1]) if isinstance(entry, list) else str(entry)

    if isinstance(content, dict):
        if all(isinstance(v, Integral) for v in content.values()):  # name -> index
            content = {index: key for key, index in content.items()}
        by_index = {int(k): name(v) for k, v in content.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("the indices are not 0, 1, 2, ...")
        return tuple(by_index[i] for i in range(len(by_index)))
    return tuple(name(entry) for entry in content)
