"""Attention weights and their gradients in a pass. Nothing is patched: fused attentions stay fused.

`watch` makes a pass without gradients and sees each attention as it runs. `attend` and `gather` read autograd's graph: the
backward pass is asked for the gradients of the attentions' results, and the gradients of the weights follow from those
one attention at a time. So no tensor of queries by keys lives longer than its attention needs, but for those that a
network without fused attentions keeps for its own backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from visx.errors import unsupported
from visx.network.attention import Attentions, attentions
from visx.network.norms import align_norms
from visx.network.outputs import require_graph
from visx.network.probe import noise
from visx.network.products import Product, Stream, in_graph
from visx.network.scorer import Scores
from visx.network.sites import Site

if TYPE_CHECKING:
    from visx.network.network import Network

_OTHERWISE = "its attentions are not those of its first pass"


@dataclass(frozen=True)
class Attended:
    """One attention in one pass, and the gradients that arrive at its result, one a target (None: none does)."""

    site: Site
    product: Product
    arrived: list[Tensor | None]

    def weights(self) -> Tensor:
        """The weights (B, W, H, Nq, Nk); do not write to them."""
        return self.site.windows(self.product.weights())

    def gradient(self, t: int) -> Tensor:
        """The gradient of target `t` with respect to the weights (B, W, H, Nq, Nk), which the caller may write to."""
        arrived, values = self.arrived[t], self.product.values
        rows = values.new_zeros(self.product.shape) if arrived is None else self.product.gradient(arrived)
        return self.site.windows(rows)

    def relevance(self, t: int) -> Tensor:
        """The relevance of the weights (B, W, H, Nq, Nk) to target `t`, where what arrived is the result's: the weights' half of
        it (arXiv:2012.09838)."""
        arrived, product = self.arrived[t], self.product
        weights = product.weights()
        if arrived is None:
            return self.site.windows(torch.zeros_like(weights))
        values = product.values.detach().to(weights)
        result = weights @ values
        r = arrived.flatten(0, -3).to(weights)
        share = torch.where(result == 0, 0, (r.mT if product.flipped else r) / result)
        return self.site.windows(weights * (share @ values.mT) / 2)


def found(network: Network, x: Tensor) -> Attentions:
    """The attentions of a network for pictures like these (B, C, H, W). Raises `VisxError` (exit 4) where it has none, or
    where a batch's pictures are not one after the other in its attentions."""
    result = attentions(network.record(x.shape[1:]))
    if result.lacking:
        raise unsupported(result.lacking)
    if len(x) > 1 and not _together(network, result, x.shape[1:]):
        raise unsupported("its attentions mix up the pictures of a batch", "--batch-size 1")
    return result


def _together(network: Network, known: Attentions, shape: torch.Size) -> bool:
    """`Attentions.together`, by two passes over noise when it is first asked for."""
    if known.together is None:
        picture = noise(shape)
        alone: list[Tensor] = []
        known.together = True
        watch(network, known, picture, lambda site, weights: alone.append(weights()))
        remaining = iter(alone)

        def compare(site: Site, weights: Callable[[], Tensor]) -> None:
            one, two = next(remaining)[0], weights()[1]
            known.together = bool(known.together) and bool((one - two).abs().max() <= 1e-3 * one.abs().max())

        watch(network, known, torch.cat([picture.flip(3), picture]), compare)
    return known.together


def watch(network: Network, known: Attentions, x: Tensor, see: Callable[[Site, Callable[[], Tensor]], None]) -> Tensor:
    """The values (B, ...) of one pass without gradients over pictures (B, C, H, W).

    `see` is called with each attention that the score is made from, in order, as soon as it has run, and with a function
    that computes its weights (B, W, H, Nq, Nk).
    """
    remaining = iter(enumerate(known.products))
    behind = set(known.behind)

    def on_product(product: Product) -> None:
        number, site = next(remaining, (-1, ""))
        if number < 0:
            raise unsupported(_OTHERWISE)
        if isinstance(site, Site) and number in behind:
            _check(site, product, len(x))
            see(site, lambda: site.windows(product.weights()))

    with torch.no_grad(), _AsWritten(), Stream(on_product, network.module.parameters()):
        values = network.logits(x)
    if next(remaining, None) is not None:
        raise unsupported(_OTHERWISE)
    return values


class _AsWritten(TorchFunctionMode):
    """Does nothing; while it is there torch's encoder layers do not take their fast path, one operation that hides all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def attend(network: Network, known: Attentions, x: Tensor, scores: Scores) -> tuple[Tensor, list[Attended]]:
    """One pass over pictures (B, C, H, W) with gradients: the scores (B, T) that `scores` makes of its values, and the
    attentions that they are made from, in the order of the pass."""
    with torch.enable_grad():
        leaf = network.prepare(x).requires_grad_()
        scored = scores(network.logits(leaf.clone()))
        require_graph(scored)
        return scored.detach(), gather(known, scored, len(x))


def gather(
    known: Attentions, scored: Tensor, batch: int, sites: set[Site] | None = None, *, keep: bool = False
) -> list[Attended]:
    """The attentions (those of `sites`, None: all) in the graph behind scores (B, T), with the gradients of each column's
    sum. Backward passes go no further back than the first of them. `keep`: the graph is wanted once more."""
    products = in_graph(scored)
    if len(products) != len(known.behind):
        raise unsupported(_OTHERWISE)
    pairs = [
        (site, product)
        for number, product in zip(known.behind, products, strict=True)
        if isinstance(site := known.products[number], Site) and (sites is None or site in sites)
    ]
    for site, product in pairs:
        _check(site, product, batch)
    align_norms(scored)
    edges = [product.edge for _, product in pairs]
    count = scored.shape[1]
    arrived = [
        torch.autograd.grad(scored[:, t].sum(), edges, retain_graph=keep or t + 1 < count, allow_unused=True)  # type: ignore[arg-type]
        for t in range(count)
    ]
    return [Attended(*pair, [grads[i] for grads in arrived]) for i, pair in enumerate(pairs)]


def _check(site: Site, product: Product, batch: int) -> None:
    rows, queries, keys = site.shape
    if product.shape != (rows * batch, queries, keys):
        raise unsupported(_OTHERWISE)


def reading(known: Attentions, like: Tensor) -> Tensor:
    """How much each token (N,) of the last attention counts for the score, where all are over one sequence of tokens; of
    the type and on the device of `like`."""
    site = known.sites[-1]
    assert site.tokens is not None, known.apart
    return known.reads.new_zeros(len(site.tokens)).index_copy_(0, site.asks, known.reads[0]).to(like)


def asking(known: Attentions, number: int, like: Tensor) -> Tensor:
    """How much each query (W, Nq) of site `number` counts: in the last one as the score reads them, before it the same
    tokens; all alike where those are not among its queries, and where there are several sequences of tokens. They sum to
    one in each window that counts."""
    sites = known.sites
    number %= len(sites)
    if number == len(sites) - 1:
        return known.reads.to(like)
    site = sites[number]
    counts = known.reads.new_zeros(0)
    if known.joins is not None:
        counts = reading(known, counts)
        for later in range(len(sites) - 1, number, -1):
            counts = known.before(counts, later)
        counts = counts[site.asks][None]
    if not counts.any():
        counts = known.reads.new_ones(site.queries.shape)
    return (counts / counts.sum(1, keepdim=True)).to(like)
