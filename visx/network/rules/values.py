"""The values that nodes of autograd's graph stand for, as far as autograd keeps them for its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visx.network.rules.relevance import Graph

_SAME = frozenset(
    ["View", "UnsafeView", "ViewAs", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias", "Clone"]
)  # keep the order of values
_SEVERAL = frozenset(
    ["Unbind", "Split", "SplitWithSizes", "Max", "Min", "Sort", "Topk", "VarMean", "StdMean"]
)  # make several values
# Where a node keeps its inputs, by their numbers
_KEPT = {
    "NativeLayerNorm": {0: "_saved_input"}, "Addmm": {1: "_saved_mat1"}, "Mm": {0: "_saved_self"},
    "Linear": {0: "_saved_input"}, "Mul": {0: "_saved_self", 1: "_saved_other"}, "Gelu": {0: "_saved_self"},
    "Silu": {0: "_saved_self"},
}  # fmt: skip


def value(graph: Graph, node: Any) -> Tensor | None:
    """The value of a node, without its graph; None where it cannot be told."""
    if graph.names[node] in _SEVERAL:
        return None
    shape = tuple(node._input_metadata[0].shape)
    result = _used(graph, node)
    if result is None:
        result = _made(graph, node)
    return None if result is None else result.detach().reshape(shape)


def _used(graph: Graph, node: Any) -> Tensor | None:
    """As a node that it goes to has kept it."""
    for use, place in graph.uses[node]:
        name = graph.names[use]
        attribute = _KEPT.get(name, {}).get(place)
        result = getattr(use, attribute) if attribute else _used(graph, use) if name in _SAME else None
        if result is not None:
            return result  # type: ignore[no-any-return]
    return None


def _made(graph: Graph, node: Any) -> Tensor | None:
    """As it follows from what the node itself has kept."""
    name, inputs = graph.names[node], [before for before, _ in node.next_functions]
    if name in _SAME:
        return value(graph, inputs[0])
    if name in ("Slice", "Select"):
        result = value(graph, inputs[0])
        if result is None or name == "Select":
            return None if result is None else result.select(node._saved_dim, node._saved_index)
        bounds = node._saved_start or 0, node._saved_end, node._saved_step
        return torch.ops.aten.slice.Tensor(result, node._saved_dim, *bounds)  # type: ignore[no-any-return]
    if name == "NativeLayerNorm":
        result = (node._saved_input - node._saved_result1) * node._saved_result2
        result = result if node._saved_weight is None else result * node._saved_weight
        return result if inputs[2] is None else result + inputs[2].variable
    if name in ("Mm", "Addmm"):
        result = (node._saved_self if name == "Mm" else node._saved_mat1) @ node._saved_mat2
        return result if name == "Mm" or inputs[0] is None else result + inputs[0].variable
    if name == "Mul" and node._saved_self is not None and node._saved_other is not None:
        return node._saved_self * node._saved_other  # type: ignore[no-any-return]
    if name == "Add":
        parts = [None if before is None else value(graph, before) for before in inputs]
        if len(parts) == 2 and parts[0] is not None and parts[1] is not None and node._saved_alpha == 1:
            return parts[0] + parts[1]
    if name == "AccumulateGrad":
        return node.variable  # type: ignore[no-any-return]
    return None
