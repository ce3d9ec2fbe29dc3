"""Scores of blocks of their own: what a network would say if each of its blocks were the last.

All of it is one pass. Behind each block the stream of tokens is cut, so that a gradient stays within one block. The last
block hands on the outputs of all of them, one batch after the other, to what follows: normalisation, pooling, classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, unsupported
from visx.network.attending import Attended, gather
from visx.network.attention import Attentions
from visx.network.grid import FeatureGrid, read
from visx.network.isolation import hooked
from visx.network.memory import out_of_memory
from visx.network.outputs import require_graph
from visx.network.scorer import Scores
from visx.network.sites import Site
from visx.network.stream import stream
from visx.network.tensors import tensors

if TYPE_CHECKING:
    from visx.network.network import Network


@dataclass(frozen=True, eq=False)
class Block:
    """A module whose only attention is `site`; the first tensor of its output is read as `grid`."""

    name: str
    site: Site
    grid: FeatureGrid


def blocks(network: Network, known: Attentions, shape: torch.Size) -> list[Block]:
    """The last blocks of a network, in order, whose outputs have one form. The very last is that of the last attention that
    is no pooling of tokens (class attention, attention pooling). Raises `VisxError` (exit 4) where that is no module of its
    own that runs once, or its output no feature map."""
    sites = known.sites
    last = next((i for i in range(len(sites) - 1, -1, -1) if not sites[i].pools), len(sites) - 1)
    record = network.record(shape)
    through = set(stream(record.score[0].node)) if record.score and record.score[0].node else set()
    result: list[Block] = []
    for site in sites[last::-1]:
        runs = [run for run in record.runs if run.name == site.block and site.block]
        value = runs[0].outputs[0] if len(runs) == 1 and runs[0].outputs else None
        if value is None or value.node is None:
            break
        grid = read(value.shape, value.node.places, paired=value.node.paired)
        if value.node not in through:
            if not result:
                raise unsupported(
                    f"the score depends on more than the output of its last attention's block {site.block}"
                )
            break
        if isinstance(grid, str) or (result and grid.form(1) != result[-1].grid.form(1)):
            break
        result.append(Block(site.block, site, grid))
    if not result:
        raise unsupported("its last attention is in no block of its own whose output is a feature map")
    return result[::-1]


def own_scores(
    network: Network,
    known: Attentions,
    x: Tensor,
    scores: Scores,
    some: Sequence[Block],
    average: bool,
) -> list[Attended]:
    """The attentions of some blocks (from `blocks`, the last one included) in a pass over pictures (B, C, H, W), with the
    gradients of each block's own scores (B, T). `scores` makes scores of values, first of those of the pass itself.
    `average`: each token of a block's output counts as the mean of all of them."""
    outputs: list[Tensor] = []
    with torch.enable_grad(), ExitStack() as stack:
        for block in some:
            hook = _hook(block, len(x), outputs, average, last=block is some[-1])
            stack.enter_context(hooked(network.layer(block.name), hook))
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
        return gather(known, scored, len(x), {block.site for block in some})


def _hook(block: Block, batch: int, outputs: list[Tensor], average: bool, last: bool) -> Callable[..., Any]:
    """What is hung on a block: it keeps the output, and hands on a copy of it without its graph; the last one, all."""
    grid = block.grid
    places = tuple(sorted(grid.axes[1 + len(grid.features) :]))

    def mean(output: Tensor) -> Tensor:
        return output.mean(places, keepdim=True).expand_as(output) if average else output

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        whole = output if isinstance(output, Tensor) else next(tensors(output))
        if tuple(whole.shape) != grid.form(batch) or not (whole is output or type(output) in (tuple, list)):
            raise unsupported(f"block {block.name} does not return the tokens of {batch} images")
        outputs.append(whole)
        if last:
            handed = torch.cat([whole, *map(mean, outputs)], grid.axes[0])
        else:
            handed = whole.detach().requires_grad_().clone()
        if isinstance(output, Tensor):
            return handed
        return type(output)(handed if part is whole else part for part in output)

    return cut
