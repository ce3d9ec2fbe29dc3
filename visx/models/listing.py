"""The list of models by source, and whether their default weights are on this machine."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from visx.models.sources import all_sources


def list_models(pattern: str | None = None) -> list[dict[str, Any]]:
    """Rows {name, source, weights_here} of the models that sources list.

    `pattern` is a part of a name, or a pattern with `*`, `?` and `[]`. Sources with a prefix (timm) are asked only where the
    pattern names it or nothing else fits, because they take long to list.
    """
    rows: list[dict[str, Any]] = []
    every = sorted(all_sources(), key=lambda source: bool(source.prefix))
    for source in every:
        if (
            pattern is not None
            and source.prefix
            and source.prefix.rstrip("/") not in pattern
            and _fitting(rows, pattern)
        ):
            continue
        rows += [{"name": name, "source": source.title, "weights_here": here} for name, here in source.listed()]
    return _fitting(rows, pattern)


def _fitting(rows: Iterable[dict[str, Any]], pattern: str | None) -> list[dict[str, Any]]:
    """The rows whose name fits the pattern, whatever its case."""
    if pattern is None:
        return list(rows)
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [row for row in rows if fnmatch.fnmatch(row["name"].lower(), glob.lower())]
