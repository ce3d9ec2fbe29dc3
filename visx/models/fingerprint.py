"""Fingerprints: whether a user's own model still computes the same, although its name and weights are the same.

A library's model follows from its name, weights and preprocessing. A user's own model also follows from its code and from
everything that the code reads (a configuration file, the environment). Its fingerprint has two parts:

* `code`, a digest of the sources that its factory imported from its own folder. It is exact and the same on every machine, so
  that it may be part of file names.
* `outputs`, eight numbers made of the outputs for one fixed picture. They change where something changes that the sources do
  not show. They are compared within a tolerance, not hashed, because other devices and numbers of threads round differently.
  A network whose outputs differ from pass to pass, or that computes in half precision, has none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visx.network.blackbox import BlackBox
from visx.network.network import Network

_NUMBERS = 8
TOLERANCE = 1e-4  # relative; in float32 another number of threads changes outputs by 1e-6, another device by 1e-5


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a user's own model.

    `code`: a digest (hex) of the model's sources, empty where they are unknown. `outputs`: eight numbers, or None.
    """

    code: str
    outputs: tuple[float, ...] | None

    def as_dict(self) -> dict[str, Any]:
        """The fingerprint as the manifest holds it."""
        return {"code": self.code, "outputs": self.outputs and list(self.outputs)}


def same(recorded: object, now: Fingerprint | None) -> bool:
    """Whether the outputs in a record's fingerprint are those of the present one, within `TOLERANCE`.

    The code is not compared: it is part of the recipe.
    """
    earlier = recorded.get("outputs") if isinstance(recorded, Mapping) else None
    if now is None or now.outputs is None or not isinstance(earlier, list):
        return earlier is None and (now is None or now.outputs is None)
    try:
        return len(earlier) == len(now.outputs) and close(earlier, now.outputs)
    except TypeError:  # the record holds something else than numbers
        return False


def close(a: Any, b: Any) -> bool:
    """Whether the distance between two lists of numbers is at most `TOLERANCE` of the larger norm."""
    distance = math.dist(a, b)
    return distance <= TOLERANCE * max(math.hypot(*a), math.hypot(*b))


def take(network: BlackBox, shape: Sequence[int], code: Callable[[], str]) -> Fingerprint:
    """The fingerprint of a network, or of a black box, whose input has the `shape` (C, H, W); `code` returns the digest of its sources."""
    outputs = _outputs(network, shape)  # before code(): the forward pass may import further sources
    return Fingerprint(code(), outputs)


@torch.no_grad()
def _outputs(network: BlackBox, shape: Sequence[int]) -> tuple[float, ...] | None:
    """Eight sums of the outputs for a fixed picture, with fixed random signs.

    None where two passes differ, where an output is not finite, or where the network fails or returns no numbers.
    """
    if network.dtype not in (torch.float32, torch.float64):
        return None
    picture = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with network.session():
            first, second = (_summed(network, picture) for _ in range(2))
    except Exception:  # whatever the user's forward raises: the examination of the anatomy reports it
        return None
    finite = first is not None and all(map(math.isfinite, first))
    return first if finite and second is not None and close(first, second) else None


def _summed(network: BlackBox, picture: Tensor) -> tuple[float, ...] | None:
    """The eight sums of one pass; None where the network returns no numbers."""
    torch.manual_seed(0)  # the session restores the random state afterwards
    output = network.module(network.prepare(picture)) if isinstance(network, Network) else network.scores_of(picture)
    tensors = [t.detach().double().cpu().flatten() for t in _tensors(output)]
    if not tensors:
        return None
    values = torch.cat(tensors)
    signs = torch.randn(_NUMBERS, len(values), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tuple((signs @ values).tolist())


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a model's output of any structure."""
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
