"""The tensors inside what a model returned: a tuple, list, dict, dataclass, or any nesting of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

DEEPEST = 4


def members(raw: Any) -> dict[str, Tensor]:
    """Every tensor in a raw output by its path: `0`, `logits`, `out.cls`."""
    return dict(_members(raw, "", 0))


def _members(raw: Any, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(raw, Tensor):
        yield path, raw
        return
    for key, value in _entries(raw) if depth < DEEPEST else ():
        yield from _members(value, f"{path}.{key}" if path else str(key), depth + 1)


def _entries(raw: Any) -> list[tuple[Any, Any]]:
    if isinstance(raw, Mapping):  # the outputs of `transformers` are both a mapping and a dataclass
        return list(raw.items())
    if hasattr(raw, "_fields"):  # a named tuple
        return list(zip(raw._fields, raw, strict=True))
    if isinstance(raw, (tuple, list)):
        return list(enumerate(raw))
    if dataclasses.is_dataclass(raw):
        return [(field.name, getattr(raw, field.name)) for field in dataclasses.fields(raw)]
    return []


def nearest(parts: Mapping[str, Tensor], key: str) -> str | None:
    """The path that a KEY names: itself, or by its place among the members; None where nothing is called so."""
    if key in parts:
        return key
    names = list(parts)
    place = int(key) if key.lstrip("-").isdigit() else len(names)
    return names[place] if -len(names) <= place < len(names) else None


def rows(values: Any, batch: int) -> Tensor | None:
    """A tensor of one row of scores an image as (B, K); None where it has not that form.

    (B, K), (B,), (B, K, 1, 1), and what `squeeze` leaves of a single image's row: (K,) and ().
    """
    if not isinstance(values, Tensor):
        return None
    if values.dim() > 1:
        fits = len(values) == batch and all(n == 1 for n in values.shape[2:])
        return (values if values.dim() == 2 else values.flatten(1)) if fits else None
    if values.numel() == batch:
        return values.reshape(batch, 1)
    return values[None] if batch == 1 and values.dim() == 1 else None
