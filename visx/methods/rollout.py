"""Attention rollout: the attention of all blocks, multiplied along the way from the picture to the score.

R = A'_L ... A'_1 with A' = (fuse_h A_h + I) / 2, each row divided by its sum (Abnar & Zuidema 2020, arXiv:2005.00928,
section 3). I stands for the residual connections. The map is the class token's row of R. The heads become one by their
mean as in the paper, or by their largest or smallest value (`head_fusion`).

The map does not depend on the target: it shows where tokens come from, not what speaks for a class.

Extensions beyond the paper:
- `discard` sets the smallest values of each block's fused attention to zero, that part of all of them, as the program
  vit-explain does (its setting is 0.9). What the first token gives itself is always kept. Unlike there, the smallest values
  are chosen for each picture alone, and rows sum to one.
- Where the score reads several tokens, or their mean, the map is the mean of their rows.
- In class attention (CaiT) only the class token looks at others. The row of any other token stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from visx.methods.common.heads import FUSION_HELP, Fusion, fused, of_every_target
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.sites import Site


class RolloutParams(Params):
    head_fusion: Fusion = Field("mean", description=FUSION_HELP)
    discard: float = Field(
        0.0, ge=0, lt=1, description="the part of each block's smallest attention that is set to zero"
    )


@method(
    "rollout",
    family="attention",
    title="Attention rollout",
    source="arXiv:2005.00928",
    needs={"tokens"},
    single_pass=True,
    params=RolloutParams,
)
def rollout(req: Request, p: RolloutParams) -> Attribution:
    import torch

    from visx.network import attending

    known = attending.found(req.network, req.x)
    reads = attending.reading(known, req.x)
    first = known.sites[0]
    assert first.tokens is not None
    rolled: list[Tensor] = [torch.eye(len(first.tokens)).to(reads).expand(len(req.x), -1, -1).clone()]

    def see(site: Site, weights: Callable[[], Tensor]) -> None:
        number = known.sites.index(site)
        before = known.after(rolled[0], number) if number else rolled[0]
        asks = site.asks.to(before.device)
        rows = _without_smallest(fused(weights(), p.head_fusion)[:, 0], p.discard)
        mixed = rows @ before[:, site.offset :] + before[:, asks]
        rolled[0] = before.index_copy(1, asks, mixed / (rows.sum(2, keepdim=True) + 1))

    values = attending.watch(req.network, known, req.x, see)
    row = reads @ rolled[0]
    return of_every_target(req, first.maps(row[:, None, first.offset :]), values)


def _without_smallest(rows: Tensor, part: float) -> Tensor:
    """Attention (B, Nq, Nk) with that part of each picture's smallest values set to zero, but for the very first value."""
    count = int(rows[0].numel() * part)
    if not count:
        return rows
    flat = rows.flatten(1)
    smallest = flat.topk(count, largest=False).indices
    kept = flat.scatter(1, smallest, 0)
    kept[:, 0] = flat[:, 0]
    return kept.view_as(rows)
