"""Transformer attribution: the attention of all blocks, each weighted by its gradient, added up on the way to the score.

R <- R + A'_b R for the blocks b in order, R = I at first, with A'_b = mean_h relu(dS/dA_h * A_h) (Chefer et al. 2021,
arXiv:2103.15679, equations 5 and 6: the generic rule for self-attention). The map is the class token's row of R.

`rule=lrp` is the same with the relevance of A in the place of A: A'_b = mean_h relu(dS/dA_h * R(A_h)) (Chefer et al. 2021,
arXiv:2012.09838). Relevance starts as 1 at the score and goes back by the z+ rule through linear layers; half of it to each
factor of a product; through skip connections by the parts of their sums; activations, softmax and normalisations pass it
on (visx/network/rules/chefer.py). It takes two backward passes. It divides by the results of products, which may be near
zero: in single precision its maps have two digits less than others. A network with another operation behind its first
attention is refused.

The row is computed from the last block back to the first, as the gradients arrive: r <- r + r A'_b. So no relevance of
queries by keys is kept, and the gradients of the weights A exist for one block at a time.

Extensions beyond the paper:
- Where the score reads several tokens (distilled DeiT), or their mean, the map is the mean of their rows. The ones of the
  starting I are taken off again, so that zero means no relevance.
- In class attention (CaiT) only the class token looks at others. The row of any other token stays as it is.
- Where heads are mixed behind the softmax, A is what is multiplied with the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.attending import Attended


class TransformerAttributionParams(Params):
    rule: Literal["generic", "lrp"] = Field(
        "generic", description="what the gradient weighs: the attention (generic), or its relevance (lrp)"
    )


@method(
    "transformer_attribution",
    family="attention",
    title="Transformer attribution",
    source="arXiv:2103.15679",
    needs={"grad", "tokens"},
    single_pass=True,
    params=TransformerAttributionParams,
)
def transformer_attribution(req: Request, p: TransformerAttributionParams) -> Attribution:
    from visx.network import attending, attention_relevance

    known = attending.found(req.network, req.x)
    reads = attending.reading(known, req.x)
    if p.rule == "lrp":
        scores, every, relevant = attention_relevance.attended_relevance(req.network, known, req.x, req.scalars)
    else:
        scores, every = attending.attend(req.network, known, req.x, req.scalars)
        relevant = []
    own = reads
    relevance = reads.expand(*scores.shape, -1).clone()
    for number in range(len(every) - 1, -1, -1):
        _add(relevance, every[number], relevant[number] if relevant else None)
        if number:
            relevance, own = known.before(relevance, number), known.before(own, number)
    site = known.sites[0]
    return Attribution(site.maps((relevance - own)[:, :, None, site.offset :]))


def _add(relevance: Tensor, attended: Attended, relevant: Attended | None) -> None:
    """One block's r <- r + r A', for the relevance (B, T, N) of its tokens; A' of the weights' relevance where it is given."""
    site = attended.site
    asks = site.asks.to(relevance.device)
    weights = attended.weights() if relevant is None else None
    for t in range(relevance.shape[1]):
        of = relevant.relevance(t) if relevant is not None else weights
        assert of is not None
        useful = attended.gradient(t)[:, 0].mul_(of[:, 0]).relu_()
        asked = relevance[:, t, asks][:, None, None]
        relevance[:, t, site.offset :] += (asked @ useful).mean(1).squeeze(1)
