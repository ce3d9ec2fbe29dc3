"""The tail: a network behind one of its layers, run on other maps than the layer's own.

All copies of a picture share what lies before the layer, which is computed once (visx/network/fast/replay.py); only the tail
sees many rows. What goes around the layer (a skip connection) keeps one row and is broadcast. A network may not bear that
(it concatenates both, or takes the batch size from before the layer). So each batch of copies begins with the layer's own
maps, whose values must be those of the clean pass; where they are not, or the pass fails, whole copies of the picture go
through the network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import unsupported
from visx.network.fast import Astray, Replay, agree, plain
from visx.network.grid import Layer
from visx.network.isolation import hooked
from visx.network.memory import out_of_memory
from visx.network.network import Network

Maps = Callable[[Tensor], Tensor]  # the layer's maps (1, K, h, w) -> those of n copies (n, K, h, w)


class Tail:
    """What lies behind a layer, for one picture (1, C, H, W).

    `layer` says how its output is read, `clean` has the network's values (1, ...) of the picture itself. Without `others`, what
    is no cell of the layer's grid (class tokens) is zero in copies; else it stays. Call inside `network.session()`.
    """

    def __init__(self, network: Network, x: Tensor, name: str, *, others: bool = True) -> None:
        self.layer: Layer = network.feature_layer(name, x.shape[1:])
        self._network, self._x, self._others = network, x, others
        self._front = None if plain() or network.behaviour.one_row else Replay()
        self._shared = not network.behaviour.one_row  # whether copies share what lies before the layer
        self.clean = self._run(x, 1, lambda output: output)

    def values(self, number: int, maps: Maps) -> Tensor:
        """The values (n, ...) that the network gives for n = `number` copies in which the layer's output has these maps."""
        if self._network.behaviour.one_row:
            rows = [self._run(self._x, 1, self._changed(lambda own, i=i: maps(own)[i : i + 1])) for i in range(number)]  # type: ignore[misc]
            return torch.cat(rows)
        if self._shared:
            values = self._together(number, maps)
            if values is not None:
                return values
            self._shared = False
        copies = self._x.expand(number, *self._x.shape[1:])
        return self._run(copies, number, self._changed(maps))

    def _together(self, number: int, maps: Maps) -> Tensor | None:
        """The values of copies that share what lies before the layer; None where the network does not bear that."""
        changed, axis = self._changed(maps), self._axis
        try:
            values = self._run(self._x, number + 1, lambda own: torch.cat([own, changed(own)], axis))
        except Astray:
            self._front = None
            return self._together(number, maps)
        except Exception as error:
            if out_of_memory(error):
                raise
            return None
        return values[1:] if agree(self.clean, values[:1], values.dtype) else None

    @property
    def _axis(self) -> int:
        assert self.layer.grid is not None
        return self.layer.grid.axes[0]

    def _changed(self, maps: Maps) -> Callable[[Tensor], Tensor]:
        """What makes the layer's output in the copies of its own output."""
        grid, axis = self.layer.grid, self._axis
        assert grid is not None

        def change(output: Tensor) -> Tensor:
            own = output.narrow(axis, 0, 1)
            changed = maps(grid.maps(own))
            return grid.inserted(changed, output) if self._others else grid.output(changed, output)

        return change

    @torch.no_grad()
    def _run(self, x: Tensor, rows: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The values of one pass over `x` in which `change` makes the layer's output of its own one, with so many rows."""
        network, layer = self._network, self.layer
        front = self._front if len(x) == 1 and self._front is not None and self._front.usable else None
        calls, reached = count(), []

        def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if next(calls) % layer.runs != layer.call:
                return None
            own = layer.output(output, len(x))
            if front is not None:
                front.arrived()
            reached.append(True)
            changed = change(own)
            return None if changed is own else _laid_out(changed, own)

        prepared = network.prepare(x)
        with hooked(network.layer(layer.name), hook), front or nullcontext():
            raw = network.run(prepared)
        if not reached:
            raise unsupported(f"layer {layer.name} ran in one forward pass and not in the next")
        return network.outputs.values(raw, rows)


def _laid_out(output: Tensor, like: Tensor) -> Tensor:
    """An output in the memory format of another; what follows may call `.view` on it."""
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return output.contiguous(memory_format=torch.channels_last)
    return output.contiguous() if like.is_contiguous() else output
