"""The list of models by source, and whether their default weights are on this machine."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from visx.models.downloads import cached_by_timm
from visx.models.sources import BuiltIn


def list_models(pattern: str | None = None) -> list[dict[str, Any]]:
    """Rows {name, source, weights_here} of the built-in model, torchvision's models, and timm's where timm is installed.

    `pattern` is a part of a name, or a pattern with `*`, `?` and `[]`. timm is asked only where the pattern names it or
    nothing else fits, because it takes long to import.
    """
    rows = [{"name": BuiltIn.name, "source": "built in", "weights_here": True}]
    rows += _torchvision()
    if pattern is None or "timm" in pattern or not _fitting(rows, pattern):
        rows += _timm()
    return _fitting(rows, pattern)


def _fitting(rows: Iterable[dict[str, Any]], pattern: str | None) -> list[dict[str, Any]]:
    """The rows whose name fits the pattern, whatever its case."""
    if pattern is None:
        return list(rows)
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [row for row in rows if fnmatch.fnmatch(row["name"].lower(), glob.lower())]


def _torchvision() -> list[dict[str, Any]]:
    from torchvision import models

    folder = Path(torch.hub.get_dir(), "checkpoints")
    rows = []
    for name in models.list_models(module=models):
        url = models.get_model_weights(name).DEFAULT.url
        rows.append(
            {"name": name, "source": "torchvision", "weights_here": (folder / url.rsplit("/", 1)[-1]).is_file()}
        )
    return rows


def _timm() -> list[dict[str, Any]]:
    try:
        import timm
    except ImportError:
        return []
    return [
        {"name": f"timm/{name}", "source": "timm", "weights_here": cached_by_timm(name) is not None}
        for name in timm.list_models()
    ]
