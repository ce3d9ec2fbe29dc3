"""The gamma rule of linear layers and convolutions: contributions of the sign of the sum count 1 + gamma times.

z_j = sum_i x_i w_ij, without the bias; R_i = sum_j (x_i w_ij + gamma (x_i w_ij)^s) / (z_j + gamma sum_k (x_k w_kj)^s) R_j,
where (.)^s keeps what has the sign s of z_j (Montavon et al. 2019, "Layer-wise relevance propagation: an overview",
generalised to inputs of both signs). With gamma = 0 it is the epsilon rule, whose gradient is the plain one.

The bias is a term of its own beside z_j, with the epsilon rule: so the rule does not depend on whether a kernel adds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visx.network.rules.local import shared
from visx.network.rules.operations import CONVOLUTIONS, FUSED_ATTENTION, MATRIX_PRODUCTS, NORMS, PRODUCTS, VIEWS
from visx.network.rules.relevance import Grads, Graph, Hook, Rule

LAYERS = frozenset({"Addmm", "Mm", "Linear"}) | CONVOLUTIONS
_PASSED = VIEWS | NORMS | {"Add", "Neg", "Stack", "Mul", "Div"}  # between a projection and the attention


class Linear(NamedTuple):
    """A layer's input `x`, its `weight`, and its two products: `forward` (x, weight), and `back` of a gradient by weight."""

    x: Tensor
    weight: Tensor
    forward: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    place: int  # of x among the node's inputs


def gamma(value: float) -> Rule:
    """The rule with this gamma, for linear layers and convolutions whose weights are constants. What leads into an attention
    and out of it keeps its gradient, and so does a product of two values half of it."""

    def rule(node: Any, graph: Graph) -> Hook | None:
        pair = PRODUCTS[graph.names[node]]
        if set(pair) <= set(graph.live(node)):
            return shared(node, graph)
        if graph.live(node) != pair[:1] or _projects(node, graph):
            return None
        layer = linear(node, graph.names[node])

        def hook(grads: Grads, incoming: Grads) -> Grads:
            grad = shares(layer, incoming[0], value)
            return tuple(grad if place == layer.place else other for place, other in enumerate(grads))

        return hook

    return rule


def linear(node: Any, name: str) -> Linear:
    """The layer that a node is. Its input is kept only where its weight wants a gradient."""
    if name in CONVOLUTIONS:
        return _convolution(node)
    if name == "Linear":
        x, weight, place = node._saved_input, node._saved_weight.mT, 0
    else:
        x, place = (node._saved_mat1, 1) if name == "Addmm" else (node._saved_self, 0)
        weight = node._saved_mat2
    return Linear(x.detach(), weight.detach(), torch.matmul, lambda g, w: g @ w.mT, place)


def _convolution(node: Any) -> Linear:
    x, weight = node._saved_input.detach(), node._saved_weight.detach()
    how = (
        node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed,
        node._saved_output_padding, node._saved_groups,
    )  # fmt: skip

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.convolution(x, w, None, *how)  # type: ignore[no-any-return]

    def back(g: Tensor, w: Tensor) -> Tensor:
        grads = torch.ops.aten.convolution_backward(g, x, w, None, *how, [True, False, False])
        return grads[0]  # type: ignore[no-any-return]

    return Linear(x, weight, forward, back, 0)


def shares(layer: Linear, g: Tensor, gamma: float) -> Tensor:
    """The gradient by a layer's input, given that by its output: relevance over value on both sides."""
    x, w = layer.x, layer.weight
    x_up, w_up = x.clamp_min(0), w.clamp_min(0)
    z = layer.forward(x, w)
    alike = layer.forward(x_up, w_up) + layer.forward(x - x_up, w - w_up)  # the positive contributions
    up = z > 0
    divisor = z + gamma * torch.where(up, alike, z - alike)
    s = torch.where(divisor == 0, 0, g * z / divisor)
    s_up = torch.where(up, s, 0)
    s_down = s - s_up
    same = layer.back(s_up, w_up) + layer.back(s_down, w - w_up)
    whole = layer.back(s, w)
    return whole + gamma * torch.where(x > 0, same, whole - same)


def _projects(node: Any, graph: Graph) -> bool:
    """Whether a layer makes queries, keys or values, or takes what an attention has made."""
    place = PRODUCTS[graph.names[node]][0]
    return _leads(graph, [use for use, _ in graph.uses[node]], lambda n: [use for use, _ in graph.uses[n]]) or _leads(
        graph, [node.next_functions[place][0]], lambda n: [before for before, _ in n.next_functions if before]
    )


def _leads(graph: Graph, start: list[Any], step: Callable[[Any], list[Any]]) -> bool:
    """Whether a way of steps leads to an attention, over what only arranges and scales values."""
    seen, waiting = set(start), list(start)
    while waiting:
        node = waiting.pop()
        name = graph.names[node]
        products = name in MATRIX_PRODUCTS and set(PRODUCTS[name]) <= set(graph.live(node))
        if name in FUSED_ATTENTION or products:
            return True
        if name in _PASSED:
            fresh = [n for n in step(node) if n not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
