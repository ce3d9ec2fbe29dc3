"""Transformer attribution: the attention of all blocks, each weighted by its gradient, added up on the way to the score.

R <- R + A'_b R for the blocks b in order, R = I at first, with A'_b = mean_h relu(dS/dA_h * A_h) (Chefer et al. 2021,
arXiv:2103.15679, equations 5 and 6: the generic rule for self-attention). The map is the class token's row of R.

The row is computed from the last block back to the first, as the gradients arrive: r <- r + r A'_b. So no relevance of
queries by keys is kept, and the gradients of the weights A exist for one block at a time.

Extensions beyond the paper: where the score reads several tokens (distilled DeiT), or their mean, the map is the mean of
their rows; what I alone puts there is left out, so that zero means no relevance. In class attention (CaiT) tokens that ask
nothing stay as they are; where heads are mixed behind the softmax, A is what is multiplied with the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.methods.contract import Attribution, Request, method

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.attending import Attended


@method(
    "transformer_attribution",
    family="attention",
    title="Transformer attribution",
    source="arXiv:2103.15679",
    needs={"grad", "attention", "tokens"},
    single_pass=True,
)
def transformer_attribution(req: Request, p: object) -> Attribution:
    from visx.network import attending

    known = attending.found(req.network, req.x)
    reads = attending.reading(known, req.x)
    scores, every = attending.attend(req.network, known, req.x, req.scalars)
    own = reads
    relevance = reads.expand(*scores.shape, -1).clone()
    for number in range(len(every) - 1, -1, -1):
        _add(relevance, every[number])
        if number:
            relevance, own = known.before(relevance, number), known.before(own, number)
    site = known.sites[0]
    return Attribution(site.maps((relevance - own)[:, :, None, site.offset :]))


def _add(relevance: Tensor, attended: Attended) -> None:
    """One block's r <- r + r A', for the relevance (B, T, N) of its tokens."""
    site, weights = attended.site, attended.weights()[:, 0]
    asks = site.asks.to(relevance.device)
    for t in range(relevance.shape[1]):
        useful = attended.gradient(t)[:, 0].mul_(weights).relu_()
        asked = relevance[:, t, asks][:, None, None]
        relevance[:, t, site.offset :] += (asked @ useful).mean(1).squeeze(1)
