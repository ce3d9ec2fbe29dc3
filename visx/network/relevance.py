"""Gradients under relevance rules (visx/network/rules/relevance.py): input times gradient is then the input's relevance.

`relevance` is a method of `Network` (visx/network/network.py) and is called inside its session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from visx.errors import unsupported
from visx.network.gradients import Differentiable, InputGradients, recomputed, score_gradients
from visx.network.outputs import require_graph
from visx.network.rules import Composite, Graph
from visx.network.scorer import Scores


@recomputed
def relevance(network: Differentiable, x: Tensor, scores: Scores, composite: Composite) -> InputGradients:
    """Gradients of scores with respect to the input (see `input_gradients`), each operation between the network's values
    and its input under its rule: one forward pass, one backward pass a column of `scores`.

    The scores' own derivative by the values is plain. Raises `VisxError` (exit 4) where an operation has no rule, or where
    no relevance arrives at the input.
    """
    with torch.enable_grad(), recorded(network.module) if composite.weighs else nullcontext():
        leaf = network.prepare(x).requires_grad_()
        values = network.logits(leaf.clone())  # a network may work in place on its input
        require_graph(values)
        plan = Graph(values, composite, leaf).plan()
        if plan.lacking:
            raise unsupported(f"relevance rules do not hold in the model: {plan.lacking}", WITHOUT_RULES)
        plan.hang()
        scored = scores(values)
        (grads,) = score_gradients(scored, [leaf])
    return InputGradients(grads, scored.detach(), Counter())


@contextmanager
def recorded(module: nn.Module) -> Iterator[None]:
    """Inside, the parameters of a module want gradients, so that autograd keeps the inputs of its layers. Call inside a
    session, which has them frozen; they are as before afterwards."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad and not p.is_inference()]
    try:
        for p in frozen:
            p.requires_grad_()
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


WITHOUT_RULES = "input_x_gradient and integrated_gradients need no rules"
