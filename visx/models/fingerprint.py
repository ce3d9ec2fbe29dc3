"""Fingerprints: whether a model of one's own still computes what it computed, though its name and weights are the same.

A library's model is what its name, its weights and its preprocessing say. A model of one's own also follows from its
code, and from whatever that code reads (a configuration beside it, the environment). So its fingerprint has two parts:

* `code`, a digest of the sources that its factory imported from beside it. It is exact and the same on every machine, so
  it may stand in file names.
* `outputs`, eight numbers made of what it returns for one fixed picture: they catch what the sources do not show. They
  are compared within a tolerance and never hashed: another number of threads or another device rounds otherwise, and
  digits that are cut off somewhere always have an edge on which two equal results fall apart. A network that
  returns something else each time, or computes in half precision, has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1e-4  # relative; in float32 another number of threads moves outputs by 1e-6, another device by 1e-5


@dataclass(frozen=True)
class Fingerprint:
    """`code`: a digest (hex) of the model's own sources, empty where they are not known. `outputs`: 8 numbers, or None."""

    code: str
    outputs: tuple[float, ...] | None

    def as_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"code": self.code, "outputs": self.outputs and list(self.outputs)}


def same(recorded: object, now: Fingerprint | None) -> bool:
    """Whether the outputs in a record are those of the model now, within `TOLERANCE`. (Its code is in the recipe.)"""
    then = recorded.get("outputs") if isinstance(recorded, Mapping) else None
    if now is None or now.outputs is None or not isinstance(then, list):
        return then is None and (now is None or now.outputs is None)
    try:
        return len(then) == len(now.outputs) and close(then, now.outputs)
    except TypeError:  # somebody has taken the record apart
        return False


def close(a: Any, b: Any) -> bool:
    """Whether two lists of numbers differ by less than `TOLERANCE` of the larger one's norm."""
    distance = math.dist(a, b)
    return distance <= TOLERANCE * max(math.hypot(*a), math.hypot(*b))
