"""Relevance on the way to attention weights, as Chefer et al. 2021 (arXiv:2012.09838) share it.

Under this composite what the backward pass carries is relevance itself, not relevance over value:
- linear layers: the z+ rule, R_i = sum_j (x_i w_ij)^+ / sum_k (x_k w_kj)^+ R_j, biases left out, for
  inputs of both signs as the authors' program has it;
- a product of two values: R_a = a dZ/da (R / Z) / 2, and so for b;
- a sum of two values: shares a / (a + b), then scaled so that each has the part |sum a'| / (|sum a'| + |sum b'|) of the
  image's relevance (a skip connection);
- activations, softmax, layer normalisation, constant factors and constant terms: identity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from visx.network.rules.gamma import LAYERS, linear
from visx.network.rules.local import plain
from visx.network.rules.operations import CONVOLUTIONS, FUSED_ATTENTION, PRODUCTS, SOFTMAX, VIEWS
from visx.network.rules.relevance import Composite, Grads, Graph, Hook, NoRule
from visx.network.rules.values import value

_ACTIVATIONS = frozenset({"Gelu", "Silu", "Relu", "Hardswish", "Mish", "Tanh", "Hardtanh"})


_KEPT = {"Bmm": ("_saved_self", "_saved_mat2"), "Baddbmm": ("_saved_batch1", "_saved_batch2")}


def _over(r: Tensor, z: Tensor) -> Tensor:
    """r / z, zero where z is."""
    return torch.where(z == 0, 0, r / z)


def identity(node: Any, graph: Graph) -> Hook | None:
    """All relevance to the one input that has any."""
    if len(graph.live(node)) != 1:
        raise NoRule
    (place,) = graph.live(node)

    def hook(grads: Grads, incoming: Grads) -> Grads:
        return tuple(incoming[0] if at == place else grad for at, grad in enumerate(grads))

    return hook


def z_plus(node: Any, graph: Graph) -> Hook:
    """The z+ rule of a linear layer."""
    layer = linear(node, graph.names[node])

    def hook(grads: Grads, incoming: Grads) -> Grads:
        x_up, w_up = layer.x.clamp_min(0), layer.weight.clamp_min(0)
        x_down, w_down = layer.x - x_up, layer.weight - w_up
        s = _over(incoming[0], layer.forward(x_up, w_up) + layer.forward(x_down, w_down))
        r = x_up * layer.back(s, w_up) + x_down * layer.back(s, w_down)
        return tuple(r if at == layer.place else grad for at, grad in enumerate(grads))

    return hook


def product(node: Any, graph: Graph) -> Hook | None:
    """A product with a constant; with a parameter, of matrices; or of two values."""
    name = graph.names[node]
    first, second = PRODUCTS[name]
    if not {first, second} <= set(graph.live(node)):
        if name in LAYERS and graph.live(node) == (first,):
            return z_plus(node, graph)
        if name not in ("Mul", "Addcmul"):
            raise NoRule
        return identity(node, graph)
    if name not in _KEPT:
        raise NoRule
    a, b = (getattr(node, attribute).detach() for attribute in _KEPT[name])

    def hook(grads: Grads, incoming: Grads) -> Grads:
        s = _over(incoming[0], a @ b) / 2
        parts = {first: a * (s @ b.mT), second: b * (a.mT @ s)}
        return tuple(parts.get(at, grad) for at, grad in enumerate(grads))

    return hook


def attention(node: Any, graph: Graph) -> Hook:
    """Attention in one operation, as the two products that it is, with the identity for the softmax between them."""
    q, k, v = (getattr(node, f"_saved_{name}").detach() for name in ("query", "key", "value"))
    scale = getattr(node, "_saved_scale", None) or 1 / math.sqrt(q.shape[-1])
    masks = (getattr(node, f"_saved_{name}", None) for name in ("attn_mask", "attn_bias"))
    mask = next((mask for mask in masks if mask is not None), None)

    def hook(grads: Grads, incoming: Grads) -> Grads:
        z = q @ k.mT
        scores = z * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        a = scores.softmax(-1)
        s = _over(incoming[0], a @ v) / 2
        r_v, r_a = v * (a.mT @ s), a * (s @ v.mT)
        s = _over(r_a, z) / 2
        return (q * (s @ k), k * (s.mT @ q), r_v, *grads[3:])

    return hook


def added(node: Any, graph: Graph) -> Hook | None:
    """A sum of two values, whose first axis is that of images. A constant term gets nothing."""
    if len(graph.live(node)) < 2:
        return identity(node, graph)
    (first, _), (second, _) = node.next_functions
    a, b, z = value(graph, first), value(graph, second), value(graph, node)
    if z is not None and (a is None) != (b is None):
        a, b = (z - b, b) if a is None and b is not None else (a, z - a)  # type: ignore[operator]
    if a is None or b is None or a.shape != b.shape or getattr(node, "_saved_alpha", 1) != 1:
        raise NoRule
    total = a + b

    def hook(grads: Grads, incoming: Grads) -> Grads:
        r = incoming[0]
        axes = tuple(range(1, r.dim()))
        s = _over(r, total)
        parts = a * s, b * s
        sums = [part.sum(axes, keepdim=True) for part in parts]
        both = sums[0].abs() + sums[1].abs()
        whole = r.sum(axes, keepdim=True)
        return tuple(part * _over(_over(of.abs(), both) * whole, of) for part, of in zip(parts, sums, strict=True))

    return hook


def mean(node: Any, graph: Graph) -> Hook:
    """A mean over tokens: shares as the values have them."""
    x = value(graph, node.next_functions[0][0])
    if x is None:
        raise NoRule
    axes = tuple(d % x.dim() if d < 1 << 32 else d - (1 << 64) + x.dim() for d in node._saved_dim)
    keep = bool(node._saved_keepdim)

    def hook(grads: Grads, incoming: Grads) -> Grads:
        r = incoming[0] if keep else incoming[0].reshape([1 if d in axes else n for d, n in enumerate(x.shape)])
        return (x * _over(r, x.sum(axes, keepdim=True)),)

    return hook


CHEFER = Composite(
    (
        (VIEWS | {"Gather", "Stack"}, plain),
        (frozenset(PRODUCTS) - CONVOLUTIONS, product),
        (FUSED_ATTENTION, attention),
        (frozenset({"Add"}), added),
        (frozenset({"Mean"}), mean),
        (_ACTIVATIONS | SOFTMAX | {"NativeLayerNorm", "Div"}, identity),
    ),
    weighs=True,
)
