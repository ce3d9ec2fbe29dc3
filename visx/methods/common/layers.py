"""What methods of a layer share: warnings that a reader of their maps needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visx.network.grid import Layer


def layer_warnings(layer: Layer) -> list[str]:
    """Warnings about a layer that runs several times in one pass, or whose map has a single cell; empty for any other.

    Every method that declares `needs={"layer"}` adds them to the warnings of each of its maps.
    """
    assert layer.grid is not None
    warnings = []
    if layer.calls > 1:
        which = "its last output" if layer.call == layer.runs - 1 else f"its output of run {layer.call + 1}"
        warnings.append(f"layer {layer.name} runs {layer.calls} times in one pass: {which} is explained")
    if layer.grid.single:
        warnings.append(f"layer {layer.name} has one cell, so its map is the same everywhere")
    return warnings
