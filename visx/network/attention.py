"""Self-attention over the picture's tokens: where a network has it, read from the record of a pass (visx/network/record.py).

An attention multiplies weights, which come from a softmax, with values. The values stand for tokens (its keys), and the
record knows for each of them its place in the picture. So it does not matter how an attention is written: fused,
`nn.MultiheadAttention`, by hand, in windows that are shifted, with keys that are pooled. What its weights and their
gradients are in a pass: visx/network/attending.py.

Not an attention over tokens are a softmax over channels (XCiT), and products without a softmax (linear attention), which
have no probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from visx.network.placement import ATTENTION
from visx.network.places import average, several
from visx.network.record import ModuleRun, Node, Record, ancestors
from visx.network.sites import NO_GRID, Site, placed

SOFTMAXES = frozenset({"_softmax", "_safe_softmax"})
PRODUCTS = frozenset({"bmm", "baddbmm"})
UNKNOWN = "where its tokens lie in the picture cannot be told"
NEAR = 24  # operations between a softmax and the product with the values: a change of type, dropout, a linear layer over heads


@dataclass(eq=False)
class Attentions:
    """The attentions of a network for inputs of one shape, in the order of a pass.

    `products` has every product of attention weights with values: a `Site`, or the reason why it is no attention over
    tokens. `behind` are the numbers of those that the explained score was made from. `lacking` says why there is none
    among these (empty where there is one). `joins` has for each site of `sites` but the first the numbers that the tokens
    of the one before have among its own; None, with the reason in `apart`, where they are not the same sequence of tokens.
    `reads` (W, Nq) says how much each query of the last site counts for the score: the same for all of a window that receive
    a gradient from it, which sum to one. Where none is known (a head of zeros, no gradients) it is the class tokens, if
    there are any.
    `together`: whether the pictures of a batch come one after the other in the rows of every product; None: not known yet.
    """

    products: list[Site | str]
    behind: list[int]
    lacking: str
    joins: list[Tensor] | None = None
    apart: str = ""
    reads: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    together: bool | None = None

    @property
    def sites(self) -> list[Site]:
        """The attentions over tokens that the score was made from."""
        return [site for number in self.behind if isinstance(site := self.products[number], Site)]

    @property
    def warning(self) -> list[str]:
        """One warning where attentions behind the last of `sites` mix tokens that cannot be placed; else none."""
        later = self.behind[self.behind.index(max(i for i in self.behind if isinstance(self.products[i], Site))) + 1 :]
        lost = [why for number in later if (why := self.products[number]) in (UNKNOWN, NO_GRID)]
        return [f"the last attentions are not seen, {len(lost)} of {len(self.behind)}: {lost[-1]}"] if lost else []

    def before(self, values: Tensor, number: int) -> Tensor:
        """Values of the tokens of site `number` (..., N) -> those of the tokens of the site before it, which it has, too."""
        assert self.joins is not None, "its attentions are over different sequences of tokens"
        return values[..., self.joins[number - 1].to(values.device)]

    def after(self, rows: Tensor, number: int) -> Tensor:
        """Rows of the tokens of the site before number `number` (B, N, n) -> of those of its own tokens, zero for new ones."""
        assert self.joins is not None, "its attentions are over different sequences of tokens"
        join, tokens = self.joins[number - 1], self.sites[number].tokens
        assert tokens is not None
        return rows.new_zeros(len(rows), len(tokens), rows.shape[2]).index_copy(1, join.to(rows.device), rows)


_known: WeakKeyDictionary[Record, Attentions] = WeakKeyDictionary()


def attentions(record: Record) -> Attentions:
    """What the closed record of a pass shows of attentions; read once."""
    if record not in _known:
        _known[record] = _read(record)
    return _known[record]


def _read(record: Record) -> Attentions:
    score = record.score[0].node if record.score is not None else None
    behind = ancestors(score) if score is not None else set()
    seen = set(behind)
    for run in record.runs:
        if run.node is not None and run.node not in seen:
            seen |= ancestors(run.node)
    nodes = sorted((node for node in seen if node.attends), key=lambda node: node.index)
    weighing = [product for node in nodes if (product := _weighing(node)) is not None]
    indices = [product.node.index for product in weighing]
    products: list[Site | str] = []
    for product in weighing:
        try:
            products.append(_site(product, *_modules(record.runs, product.node.index, indices)))
        except Exception:  # a form that nobody has thought of: no other method may fail for it
            products.append(UNKNOWN)
    result = Attentions(products, [i for i, product in enumerate(weighing) if product.node in behind], "")
    if not result.sites:
        result.lacking = _lacking([str(products[i]) for i in result.behind], any(n in behind for n in nodes))
    else:
        of_score = [weighing[i].node for i in result.behind]
        result.joins, result.apart = _joined([products[i] for i in result.behind])
        if any(one not in ancestors(next_one) for one, next_one in pairwise(of_score)):
            result.joins, result.apart = None, "its attentions run beside each other, not one behind the other"
        result.reads = _reads(result.sites[-1], record.reads)
    return result


def _reads(last: Site, rows: Tensor | None) -> Tensor:
    """`Attentions.reads`, from the queries (R, Nq) of its rows that receive a gradient."""
    if rows is not None and tuple(rows.shape) == last.shape[:2]:
        reads = last.windows(rows[..., None])[0].any(1).squeeze(2).cpu()
    else:
        prefix = last.queries.isnan()
        reads = prefix if prefix.any() else ~prefix
    return reads.double() / reads.sum(1, keepdim=True).clamp_min(1)


class _Weighing(NamedTuple):
    """A product of weights, its input number `at` (of a written one), with values. `softmax` made the weights; None where
    the attention is fused."""

    node: Node
    at: int
    softmax: Node | None


def _weighing(node: Node) -> _Weighing | None:
    """What a product is, if a softmax makes one of its inputs."""
    if ATTENTION in node.op:
        return _Weighing(node, 0, None)
    if node.op == "bmm" and len(node.inputs) == 2:
        for at, operand in enumerate(node.inputs):
            softmax = _before(operand, SOFTMAXES)
            if softmax is not None:
                return _Weighing(node, at, softmax)
    return None


def _before(node: Node, ops: frozenset[str]) -> Node | None:
    """The nearest of these operations that makes as many values as arrive at a node, with no other product of two
    activations in between: weights may be mixed by a linear layer over heads, scores by a bias."""
    count, waiting, seen = _size(node.shape), [node], {node}
    while waiting and len(seen) <= NEAR:
        node = waiting.pop(0)
        if node.op in ops and _size(node.shape) == count:
            return node
        for before in () if node.attends else node.inputs:
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return None


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _modules(runs: Sequence[ModuleRun], index: int, all_indices: Sequence[int]) -> tuple[str, str]:
    """The paths of the innermost module that makes node `index`, and of the outermost one that makes it and no other of
    these nodes (empty where there is none)."""
    around = sorted((run for run in runs if index in run.made), key=lambda run: len(run.made))
    alone = [run for run in around if run.name and sum(other in run.made for other in all_indices) == 1]
    return around[0].name if around else "", alone[-1].name if alone else ""


def _site(product: _Weighing, module: str, block: str) -> Site | str:
    """The attention that a product is, or why it is none over tokens."""
    node, at, softmax = product
    fused = softmax is None
    if softmax is not None and _before(softmax, PRODUCTS) is None:
        return "its weights are not made of queries and keys"
    values = node.inputs[min(2, len(node.inputs) - 1)] if fused else node.inputs[1 - at]
    if values.places is None:
        return UNKNOWN
    channels, tokens = (-1, -2) if fused or at == 0 else (-2, -1)
    dims = values.places.dim()
    keys = average(values.places, (channels % dims,))
    if not several(keys):
        return "its attention is over channels, not over the places of the picture"
    axis = tokens if fused or at == 0 else -1
    queries = None if node.places is None else average(node.places, (channels % len(node.shape),))
    return placed(
        module,
        block,
        _by_row(keys, values.shape, channels, tokens),
        node.shape[axis],
        None if queries is None else _by_row(queries, node.shape, channels, axis),
    )


def _by_row(places: Tensor, shape: Sequence[int], channels: int, tokens: int) -> Tensor:
    """Places averaged over the axis of channels -> (rows, tokens), all axes before as rows."""
    count = shape[tokens]
    lead = torch.Size(shape[:-2]).numel()
    flat = places.squeeze(channels % places.dim())
    return flat.expand(*shape[:-2], count).reshape(lead, count)


def _lacking(reasons: list[str], products: bool) -> str:
    if reasons:
        return f"it has no self-attention over the picture's tokens: {reasons[-1]}"
    without = "; its products of activations have no softmax (linear attention), so there are no weights to see"
    return "it has no self-attention over the picture's tokens" + without * products


def _joined(products: Sequence[Site | str]) -> tuple[list[Tensor] | None, str]:
    """`Attentions.joins` and `apart`."""
    joins: list[Tensor] = []
    before: Site | None = None
    for product in products:
        if isinstance(product, str):
            return None, f"another one mixes its tokens: {product}"
        if len(product.order) > 1:
            return None, f"its attention works in {len(product.order)} windows, not over one sequence of tokens"
        if product.tokens is None:
            return None, "its queries and keys are not the same tokens (pooled keys)"
        if before is not None and before.tokens is not None:
            join = _same_tokens(before.tokens, product.tokens)
            if join is None:
                counts = f"{len(before.tokens)} and {len(product.tokens)}"
                return None, f"its blocks see different sequences of tokens ({counts})"
            joins.append(join)
        before = product
    return joins, ""


def _same_tokens(before: Tensor, after: Tensor) -> Tensor | None:
    """The numbers that tokens with these places have among those after: all of them, or those without prefix tokens that
    are new. None where they are not the same."""
    if before.shape == after.shape:
        every = torch.arange(len(after))
        return every if _agree(before, after) else None
    old = (~after.isnan()).nonzero().flatten()
    return old if len(old) == len(before) and _agree(before, after[old]) else None


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((((a - b).abs() < 1e-3) | (a.isnan() & b.isnan())).all())
