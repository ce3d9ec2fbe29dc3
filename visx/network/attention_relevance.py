"""The relevance of attention weights, and their gradients, in one pass (visx/network/rules/chefer.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from visx.errors import unsupported
from visx.network.attending import Attended, gather
from visx.network.attention import Attentions
from visx.network.forms import scripted
from visx.network.outputs import require_graph
from visx.network.relevance import recorded
from visx.network.rules import CHEFER, Graph
from visx.network.scorer import Scores

if TYPE_CHECKING:
    from visx.network.network import Network


def attended_relevance(
    network: Network, known: Attentions, x: Tensor, scores: Scores
) -> tuple[Tensor, list[Attended], list[Attended]]:
    """The scores (B, T) of one pass over pictures (B, C, H, W), its attentions with the gradients that arrive at their
    results, and the same with the relevance that arrives (arXiv:2012.09838): two backward passes a column."""
    if inside := scripted(network.module):
        raise unsupported(f"a relevance rule does not reach into the scripted module {inside}", "rule=generic")
    with torch.enable_grad(), recorded(network.module):
        leaf = network.prepare(x).requires_grad_()
        values = network.logits(leaf.clone())
        require_graph(values)
        scored = scores(values)
        plain = gather(known, scored, len(x), keep=True)
        ends = {attended.product.edge.node for attended in plain if attended.product.edge is not None}
        plan = Graph(values, CHEFER, leaf).plan(ends)
        if plan.lacking:
            raise unsupported(
                f"the relevance rules of rule=lrp do not hold in the model: {plan.lacking}", "rule=generic"
            )
        plan.hang()
        return scored.detach(), plain, gather(known, scored, len(x))
