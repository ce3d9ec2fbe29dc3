"""LeGrad: how much each block's attention to a patch would raise the score if that block were the last.

M = mean_l mean_{h,q} relu(ds_l/dA_l[h, q, k]), s_l = f(mean of the tokens of block l's output), f the network's own final
normalisation and classifier (Bousselham et al. 2024, arXiv:2404.03214). The map is the part of the patches k. The blocks
are cut from each other, so one backward pass serves all of them. A network whose score depends on more than the output of
its last block is refused.

Deviations from the paper: maps are not scaled to 0..1. `pool=own` reads the tokens of a block as the network reads those
of its last one (the class token, the mean of the patches) instead of the mean of all. A network that pools its tokens by
an attention (CaiT, SigLIP) is read that way in any case; the gradient is that of the blocks' own attentions, not of the
pooling one. In a network of several resolutions only the blocks of the last resolution have a score of their own. Attention in
windows is put back where the windows came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import upsample
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor


class LeGradParams(Params):
    pool: Literal["mean", "own"] = Field(
        "mean", description="a block's tokens are read as their mean, or as the network reads them"
    )
    blocks: int = Field(0, ge=0, description="how many of the last blocks count; 0: all")


@method(
    "legrad",
    family="attention",
    title="LeGrad",
    source="arXiv:2404.03214",
    needs={"grad", "attention"},
    single_pass=True,
    params=LeGradParams,
)
def legrad(req: Request, p: LeGradParams) -> Attribution:
    import torch

    from visx.network import attending, blockwise

    network, shape = req.network, req.x.shape[1:]
    known = attending.found(network, req.x)
    some = blockwise.blocks(network, known, shape)[-p.blocks :]
    average = p.pool == "mean" and some[-1].site is known.sites[-1]
    every = blockwise.own_scores(network, known, req.x, req.scalars, some, average)
    grid = max((attended.site.grid for attended in every), key=lambda grid: grid[0] * grid[1])
    total: Tensor | None = None
    for attended in every:
        maps = [attended.site.maps(attended.gradient(t).relu_().mean((2, 3))) for t in range(len(attended.arrived))]
        added = upsample(torch.stack(maps, 1), grid)
        total = added if total is None else total.add_(added)
    assert total is not None
    warnings = [[list(known.warning) for _ in range(total.shape[1])] for _ in req.x]
    return Attribution(total / len(every), warnings=warnings)
