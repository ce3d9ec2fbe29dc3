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

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visx.network.network import Network

_NUMBERS = 8
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


def take(network: Network, shape: tuple[int, int, int], code: Callable[[], str]) -> Fingerprint:
    """The fingerprint of a network whose input is of `shape` (C, H, W). `code` is asked last: a forward pass may import."""
    outputs = _outputs(network, shape)
    return Fingerprint(code(), outputs)


@torch.no_grad()
def _outputs(network: Network, shape: tuple[int, int, int]) -> tuple[float, ...] | None:
    """Eight random sums of the outputs for a fixed picture; None where two runs differ, or where there are none."""
    if network.dtype not in (torch.float32, torch.float64):
        return None
    picture = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with network.session():
            first, second = (_summed(network, picture) for _ in range(2))
    except Exception:  # whatever a forward of one's own raises, anatomy says better
        return None
    finite = first is not None and all(map(math.isfinite, first))
    return first if finite and second is not None and close(first, second) else None


def _summed(network: Network, picture: Tensor) -> tuple[float, ...] | None:
    torch.manual_seed(0)  # inside a session, which restores the state
    tensors = [t.detach().double().cpu().flatten() for t in _tensors(network.module(network.prepare(picture)))]
    if not tensors:
        return None
    values = torch.cat(tensors)
    signs = torch.randn(_NUMBERS, len(values), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tuple((signs @ values).tolist())


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of numbers in whatever a model returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.layout is torch.strided:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from _tensors(vars(output))
