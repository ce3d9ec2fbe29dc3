"""The default layer: walked back from the score that is explained, along the operations that were recorded.

It is the last output of a module on that way that is a grid of more than one cell and whose cells receive a gradient; of
several modules that return the same tensor, the outermost. What is not walked into: operands that only weigh a map (gates
of squeeze-and-excitation and the like). What does not count: class maps (a map that becomes the score without a linear
layer in between), the output of an adaptive pooling, and what lies between an attention's input and its products (queries,
keys, values). In a transformer that reads its class token the patches of the last block's output receive no gradient, so
there the input of the last attention is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from visx.network.placement import ATTENTION
from visx.network.record import ModuleRun, Node, ancestors

_GATES = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "_softmax"}
_ADAPTIVE_POOLING = {"_adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool3d", "mean", "amax"}


def choose(exits: Sequence[ModuleRun], score: Tensor, node: Node | None) -> tuple[str | None, str]:
    """The default layer of a pass, or None and why. `score` (1, K) is the tensor that is explained, `node` its node."""
    if node is None:
        return None, "its output does not depend on the picture"
    named = [e for e in exits if e.name and not e.unchanged and e.node is not None]
    behind, class_maps = _trunk(node)
    inside = _inside_attention(node)
    for counts in (behind, class_maps):  # class maps where there is nothing before them
        fitting = [e for e in named if e.node in counts - inside and e.node.op not in _ADAPTIVE_POOLING]
        best = _last_with_gradient(fitting, score)
        if best is not None:
            return min((e.name for e in fitting if e.node is best.node), key=lambda name: name.count(".")), ""
    grids = list(dict.fromkeys(e.name for e in reversed(named) if e.grid is not None))
    if not grids:
        return None, _none(named)
    return None, (
        f"{len(grids)} layers have a feature map, but none that lies on the way to the score receives a gradient at its "
        f"places; --layer can choose one: {', '.join(grids[:5])}"
    )


def _none(named: Sequence[ModuleRun]) -> str:
    result = named[-1].read() if named else ""
    last = (
        f"; of the last, {named[-1].name}: {result if isinstance(result, str) else 'it has one cell'}" if named else ""
    )
    return f"none of its {len({e.name for e in named})} layers has a feature map of more than one cell{last}"


def _trunk(score: Node) -> tuple[set[Node], set[Node]]:
    """What the score is made from: nodes with a linear layer or convolution between them and the score, and those (class
    maps) without. Operands that only weigh others are left out, and patches beside a class token that alone is read, up to
    the attention that read them."""
    seen: set[tuple[Node, bool, bool]] = set()
    waiting = [(score, False, False)]
    while waiting:
        state = node, weighed, picked = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        weighed, picked = weighed or node.weighs, (picked or node.picks) and not node.attends
        waiting += [(before, weighed, picked) for before in _carried(node)]
    behind = {node for node, weighed, picked in seen if weighed and not picked}
    return behind, {node for node, _, picked in seen if not picked} - behind


def _carried(node: Node) -> tuple[Node, ...]:
    """The inputs whose content a node carries on: of an attention the values; of operands of different size the full ones,
    of the full ones those that are no gates."""
    if len(node.inputs) < 2 or node.op in ("cat", "stack") or node.weighs:
        return node.inputs
    if node.attends:
        fused = ATTENTION in node.op and len(node.inputs) == 3
        return node.inputs[2:] if fused else tuple(i for i in node.inputs if not _weights(i)) or node.inputs
    full = tuple(i for i in node.inputs if i.shape == node.shape) or node.inputs
    carrying = tuple(i for i in full if i.op not in _GATES) or full
    return carrying if node.op.startswith("mul") else full


def _weights(node: Node) -> bool:
    """Whether this is the result of a softmax, views of it and the like seen through."""
    while node.op != "_softmax" and len(node.inputs) == 1 and not node.weighs:
        node = node.inputs[0]
    return node.op == "_softmax"


def _inside_attention(score: Node) -> set[Node]:
    """Queries, keys, values and what makes them: nodes that go nowhere but into products of two activations, back to the
    linear layers' outputs."""
    nodes = ancestors(score)
    users: dict[Node, list[Node]] = {}
    for node in nodes:
        for before in node.inputs:
            users.setdefault(before, []).append(node)
    inside: set[Node] = set()
    for node in sorted(nodes, key=lambda n: -n.index):
        used = users.get(node, [])
        if used and all(u.attends or (u in inside and not u.weighs) for u in used):
            inside.add(node)
    return inside


def _last_with_gradient(exits: Sequence[ModuleRun], score: Tensor) -> ModuleRun | None:
    """The latest of these outputs of which at least two cells receive a gradient; the very latest where the last ones
    receive none at all, which tells nothing. Differentiates only as far back as needed."""
    ordered = sorted(exits, key=lambda e: e.node.index if e.node else 0)
    distinct = list({e.node: e for e in ordered}.values())[::-1]
    if not score.requires_grad or not any(e.edge for e in distinct):  # recorded without gradients
        return next((e for e in distinct if e.grid is not None), None)
    distinct = [e for e in distinct if e.edge is not None]
    scalar = score.flatten()[score.detach().flatten().argmax()]  # one class, as it is explained
    waiting = (e for e in distinct if e.grid is not None)
    first, silent, size = None, None, 1
    while chunk := list(islice(waiting, size)):
        first = first or chunk[0]
        grads = torch.autograd.grad(scalar, [e.edge for e in chunk], retain_graph=True, allow_unused=True)
        for run, grad in zip(chunk, grads, strict=True):
            if grad is None or run.grid is None:
                continue
            if int(run.grid.maps(grad).ne(0).any(1).sum()) > 1:
                return run
            silent = silent is not False and not bool(grad.any())
        if silent and size > 1:  # a head of zeros, or units that this picture leaves dead
            return first
        size *= 4
    return first if silent else None
