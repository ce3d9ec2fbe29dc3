"""Scores of blocks of their own: what a network would say if each of its blocks were the last.

All of it is one pass. Behind each block the stream of tokens is cut, so that a gradient stays within one block. The last
block hands on the outputs of all of them, one batch after the other, to what follows: normalisation, pooling, classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, unsupported
from visx.network.attending import Attended, gather
from visx.network.attention import Attentions
from visx.network.grid import Layer
from visx.network.isolation import hooked
from visx.network.memory import out_of_memory
from visx.network.outputs import require_graph
from visx.network.scorer import Scores
from visx.network.sites import Site

if TYPE_CHECKING:
    from visx.network.network import Network


def blocks(network: Network, known: Attentions, shape: torch.Size) -> list[tuple[Site, Layer]]:
    """The attentions whose block has an output as the last block's, the last ones in order, with these blocks. The last
    block is that of the last attention that is no pooling of tokens (class attention, attention pooling). Raises
    `VisxError` (exit 4) where the last block is no module with a feature map that runs once."""
    sites = known.sites
    last = next((i for i in range(len(sites) - 1, -1, -1) if not sites[i].pools), len(sites) - 1)
    result: list[tuple[Site, Layer]] = []
    for site in sites[last::-1]:
        layer = network.recorded[shape].get(site.block)
        if layer is None or layer.grid is None or layer.runs > 1 or (result and layer.shape != result[-1][1].shape):
            break
        result.append((site, layer))
    if not result:
        raise unsupported("its last attention is in no block of its own whose output is a feature map")
    return result[::-1]


def own_scores(
    network: Network,
    known: Attentions,
    x: Tensor,
    scores: Scores,
    some: Sequence[tuple[Site, Layer]],
    average: bool,
) -> list[Attended]:
    """The attentions of some blocks (from `blocks`, the last one included) in a pass over pictures (B, C, H, W), with the
    gradients of each block's own scores (B, T). `scores` makes scores of values, first of those of the pass itself.
    `average`: each token of a block's output counts as the mean of all of them."""
    outputs: list[Tensor] = []
    with torch.enable_grad(), ExitStack() as stack:
        for site, layer in some:
            hook = _hook(layer, len(x), outputs, average, last=site is some[-1][0])
            stack.enter_context(hooked(network.layer(layer.name), hook))
        leaf = network.prepare(x).requires_grad_()
        try:
            raw = network.run(leaf.clone())
            values = network.outputs.values(raw, len(x) * (len(some) + 1))
        except Exception as error:  # whatever forward raises on a larger batch than it was given
            if out_of_memory(error) or (isinstance(error, VisxError) and len(outputs) < len(some)):
                raise
            reason = error.message if isinstance(error, VisxError) else said_by(error)
            raise unsupported(f"what follows its last block takes no other batch: {reason}") from error
        require_graph(values)
        clean, *own = values.split(len(x))
        scores(clean)
        scored = torch.stack([scores(each) for each in own]).sum(0)
        return gather(known, scored, len(x), {site for site, _ in some})


def _hook(layer: Layer, batch: int, outputs: list[Tensor], average: bool, last: bool) -> Callable[..., Any]:
    """What is hung on a block: it keeps the output, and hands on a copy of it without its graph; the last one, all."""
    grid = layer.grid
    assert grid is not None
    places = tuple(sorted(grid.axes[1 + len(grid.features) :]))

    def mean(output: Tensor) -> Tensor:
        return output.mean(places, keepdim=True).expand_as(output) if average else output

    def cut(module: nn.Module, args: Any, output: Any) -> Tensor:
        outputs.append(layer.output(output, batch))
        if last:
            return torch.cat([outputs[-1], *map(mean, outputs)], grid.axes[0])
        return outputs[-1].detach().requires_grad_().clone()

    return cut
