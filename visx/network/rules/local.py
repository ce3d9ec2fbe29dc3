"""Relevance rules of single operations: each makes the hook of a node, from what autograd keeps of the forward pass.

Hooks hold detached values and never the node, which would keep its graph alive for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visx.network.rules.operations import PRODUCTS
from visx.network.rules.relevance import Grads, Graph, Hook


def plain(node: Any, graph: Graph) -> None:
    """The gradient as it is: of linear and piecewise linear operations."""


def shared(node: Any, graph: Graph) -> Hook | None:
    """A product of two values that both get relevance: one half to each. A factor beside a constant has all of it."""
    pair = PRODUCTS[graph.names[node]]
    if not set(pair) <= set(graph.live(node)):
        return None
    return scaled(dict.fromkeys(pair, 0.5))


def attention(node: Any, graph: Graph) -> Hook | None:
    """Attention in one operation, as the two products that it is: probabilities times values, queries times keys."""
    live = set(graph.live(node))
    inner, outer = {0, 1} <= live, bool(live & {0, 1}) and 2 in live
    factors = {0: 0.5 if inner else 1.0, 1: 0.5 if inner else 1.0, 2: 1.0}
    return scaled({place: factor * (0.5 if outer else 1.0) for place, factor in factors.items()})


def scaled(factors: dict[int, float]) -> Hook:
    """The gradients of these inputs times a number each."""

    def scale(grads: Grads, incoming: Grads) -> Grads:
        return tuple(
            grad if grad is None or factors.get(place, 1) == 1 else grad * factors[place]
            for place, grad in enumerate(grads)
        )

    return scale


def power(node: Any, graph: Graph) -> Hook | None:
    """x^n with n > 0: the part x^(n-1) of y = x^(n-1) x is a constant."""
    exponent = float(node._saved_exponent)
    return scaled({0: 1 / exponent})


def gated(part: Callable[[Any], Callable[[Tensor], Tensor]]) -> Callable[[Any, Graph], Hook]:
    """An activation y = g(x) x, of which g(x) counts as a constant. `part` makes g of a node."""

    def rule(node: Any, graph: Graph) -> Hook:
        x, g = node._saved_self.detach(), part(node)

        def gate(grads: Grads, incoming: Grads) -> Grads:
            return (g(x).mul_(incoming[0]), *grads[1:])

        return gate

    return rule


def _gelu(node: Any) -> Callable[[Tensor], Tensor]:
    if node._saved_approximate == "tanh":
        return lambda x: (x + 0.044715 * x**3).mul_(math.sqrt(2 / math.pi)).tanh_().add_(1).mul_(0.5)
    return lambda x: (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)


def _quotient(of: Callable[[Tensor], Tensor]) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    """g of an activation with derivative 1 at zero, by division."""

    def quotient(x: Tensor) -> Tensor:
        return torch.where(x == 0, 1.0, of(x) / x)

    return lambda node: quotient


def _celu(node: Any) -> Callable[[Tensor], Tensor]:
    alpha = node._saved_alpha
    return _quotient(lambda x: F.celu(x, alpha))(node)


def elu(node: Any, graph: Graph) -> Hook:
    """ELU and SELU. In place autograd keeps the output alone, of which the input follows."""
    alpha, scale, inner = float(node._saved_alpha), float(node._saved_scale), float(node._saved_input_scale)
    result = hasattr(node, "_saved_result")
    kept = (node._saved_result if result else node._saved_self).detach()

    def gate(grads: Grads, incoming: Grads) -> Grads:
        if result:
            x, y = torch.where(kept > 0, kept / scale, (kept / (alpha * scale)).log1p() / inner), kept
        else:
            x, y = kept, torch.where(kept > 0, scale * kept, (inner * kept).expm1() * alpha * scale)
        return (torch.where(x == 0, scale, y / x) * incoming[0], *grads[1:])

    return gate


def tanh(node: Any, graph: Graph) -> Hook:
    """tanh x / x. Autograd keeps the output, of which the input follows as far as its digits tell."""
    y = node._saved_result.detach()

    def gate(grads: Grads, incoming: Grads) -> Grads:
        most = 1 - torch.finfo(y.dtype).eps
        g = torch.where(y == 0, 1.0, y / y.clamp(-most, most).atanh())
        return (g * incoming[0], *grads[1:])

    return gate


gelu = gated(_gelu)
silu = gated(lambda node: torch.sigmoid)
hardswish = gated(lambda node: F.hardsigmoid)
mish = gated(lambda node: lambda x: F.softplus(x).tanh_())
celu = gated(_celu)


def layer_norm(node: Any, graph: Graph) -> Hook:
    """The standard deviation counts as a constant; the mean is linear."""
    rstd, weight = node._saved_result2.detach(), node._saved_weight
    axes = tuple(range(-len(node._saved_normalized_shape), 0))
    weight = None if weight is None else weight.detach()

    def norm(grads: Grads, incoming: Grads) -> Grads:
        g = rstd * incoming[0] if weight is None else (incoming[0] * weight).mul_(rstd)
        return (g.sub_(g.mean(axes, keepdim=True)), *grads[1:])

    return norm


def rms_norm(node: Any, graph: Graph) -> Hook:
    """The root of the mean square counts as a constant."""
    rstd, weight = node._saved_result1.detach(), node._saved_weight
    weight = None if weight is None else weight.detach()

    def norm(grads: Grads, incoming: Grads) -> Grads:
        g = incoming[0] if weight is None else incoming[0] * weight
        return (g * rstd, *grads[1:])

    return norm


def group_norm(node: Any, graph: Graph) -> Hook:
    """As `layer_norm`, within each group of channels."""
    rstd, weight, groups = node._saved_result2.detach(), node._saved_weight, int(node._saved_group)
    weight = None if weight is None else weight.detach()

    def norm(grads: Grads, incoming: Grads) -> Grads:
        g = incoming[0]
        shape = g.shape
        if weight is not None:
            g = g * weight.view(-1, *[1] * (g.dim() - 2))
        g = g.reshape(len(g), groups, -1) * rstd.view(len(g), groups, 1)
        return (g.sub_(g.mean(2, keepdim=True)).view(shape), *grads[1:])

    return norm


def batch_norm(node: Any, graph: Graph) -> Hook | None:
    """Linear with running statistics. With the input's own (instance normalisation) as `layer_norm`, within each channel."""
    if not node._saved_training:
        return None
    rstd, weight = node._saved_result2.detach(), node._saved_weight
    rstd = rstd if weight is None else rstd * weight.detach()

    def norm(grads: Grads, incoming: Grads) -> Grads:
        g = incoming[0]
        g = g * rstd.view(-1, *[1] * (g.dim() - 2))
        return (g.sub_(g.mean((0, *range(2, g.dim())), keepdim=True)), *grads[1:])

    return norm
