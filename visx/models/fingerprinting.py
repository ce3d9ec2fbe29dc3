"""Taking the fingerprint of a network: eight numbers made of its outputs for a fixed picture (see visx/models/fingerprint.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from visx.models.fingerprint import Fingerprint, close
from visx.network.network import Network

_NUMBERS = 8


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
