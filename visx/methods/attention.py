"""Attention: where the last block looks, the row of its attention weights that the score reads.

M_k = fuse_h A_h[q, k] with A = softmax(Q K^T / sqrt(d)), q the class token and k the patches (as drawn for ViT by
Dosovitskiy et al. 2020, arXiv:2010.11929, and for the last block by Caron et al. 2021, arXiv:2104.14294). The heads become
one by their mean, their largest or their smallest value (`head_fusion`). `block` chooses another block.

The map does not depend on the target: it shows where the network looks, not what speaks for a class.

Extensions beyond the papers: a network that averages its tokens has no class token to look from. There, and where several
tokens are read (distilled DeiT), M is the mean over the queries whose result the score reads; in a block before the last
whose queries are others, over all queries. Attention in windows is put back where the windows came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from visx.errors import usage
from visx.methods.common.heads import FUSION_HELP, Fusion, fused, of_every_target
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.sites import Site


class AttentionParams(Params):
    block: int = Field(-1, description="which attention of the pass, from 0; -1 is the last")
    head_fusion: Fusion = Field("mean", description=FUSION_HELP)


@method(
    "attention",
    family="attention",
    title="Attention of a block",
    source="arXiv:2010.11929",
    needs={"attention"},
    single_pass=True,
    params=AttentionParams,
)
def attention(req: Request, p: AttentionParams) -> Attribution:
    from visx.network import attending

    known = attending.found(req.network, req.x)
    sites = known.sites
    if not -len(sites) <= p.block < len(sites):
        raise usage(f"attention: block={p.block}: the network has {len(sites)} attentions", f"0 to {len(sites) - 1}")
    chosen = sites[p.block]
    counts = attending.asking(known, p.block, req.x)
    maps: list[Tensor] = []

    def see(site: Site, weights: Callable[[], Tensor]) -> None:
        if site is chosen:
            rows = (counts[:, None] @ fused(weights(), p.head_fusion)).squeeze(2)
            maps.append(site.maps(rows))

    values = attending.watch(req.network, known, req.x, see)
    return of_every_target(req, maps[0], values, known.warning if p.block == -1 else ())
