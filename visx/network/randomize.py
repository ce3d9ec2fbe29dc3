"""Randomising: the parameters of a copy of a network, group after group from the head to the input."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visx.seeds import generator


def groups(module: nn.Module, count: int) -> list[tuple[str, list[str]]]:
    """At most `count` groups (name of the last module in it, names of its parameters), the head's first.

    Every parameter is in exactly one, those that a container holds itself (a class token) included: a container's own
    come after its children's. The order is that of definition, backwards.
    """
    owners: list[tuple[str, list[str]]] = []
    seen: set[int] = set()
    for name, part in reversed(list(module.named_modules())):
        own = [(f"{name}.{key}" if name else key, p) for key, p in part.named_parameters(recurse=False)]
        fresh = [(key, p) for key, p in own if id(p) not in seen]
        seen |= {id(p) for _, p in fresh}
        if fresh:
            owners.append((name or type(module).__name__, [key for key, _ in fresh]))
    count = min(count, len(owners))
    bounds = [round(i * len(owners) / count) for i in range(count + 1)] if count else []
    return [
        (owners[stop - 1][0], [key for _, keys in owners[start:stop] for key in keys])
        for start, stop in itertools.pairwise(bounds)
    ]


def cascade(module: nn.Module, count: int, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """(stage, network): one copy of `module`, changed further at each stage; the last stage reaches every parameter."""
    changed = copy.deepcopy(module)
    parameters = dict(changed.named_parameters(remove_duplicate=False))
    for stage, names in groups(changed, count):
        for name in names:
            randomize(parameters[name], seed, name)
        yield stage, changed


@torch.no_grad()
def randomize(parameter: Tensor, seed: int, name: str) -> None:
    """Draw a parameter anew, normal with its own mean and deviation; a constant one gets a tenth of its size as deviation."""
    values = parameter.detach().double().cpu()
    deviation = float(values.std(correction=0)) or 0.1 * float(values.abs().mean()) or 0.1
    drawn = torch.randn(values.shape, generator=generator(seed, "parameter", name), dtype=torch.float64)
    parameter.copy_(values.mean() + deviation * drawn)
