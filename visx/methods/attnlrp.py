"""AttnLRP: layer-wise relevance propagation through the softmax, products and normalisations of a transformer.

Relevance starts as the score at the score and is shared backwards, R_i = sum_j (share of i in j) R_j (Achtibat et al. 2024,
arXiv:2402.05602), by operation:
- linear layers: the gamma rule, in which contributions of the sign of the sum count 1 + gamma times, and which the paper takes
  for vision transformers, where it removes noise: `gamma` for linear layers, `gamma_conv` for convolutions (the patch
  embedding). With 0 it is the epsilon rule with epsilon -> 0, R_i = x_i sum_j w_ij R_j / y_j, as it always is for the
  layers that lead into an attention and out of it;
- softmax s of x: its first-order Taylor expansion, R_i = x_i (R_i^s - s_i sum_j R_j^s) (Proposition 3.1);
- a product of two values (queries and keys, probabilities and values, a gated MLP): half to each factor (Propositions 3.2, 3.3);
- GELU, SiLU and the like: identity, R_x = R_y;
- normalisations: identity for the scale, the mean being linear (Proposition 3.4).
Each is a gradient times an input (Arras et al. 2025, arXiv:2502.15886), so one backward pass under these rules is all, and
M = sum_c x_c g_c. A layer's gamma rule takes six more products. Biases and the constant part of the softmax keep their
share: the map sums to the score where there are neither. The sum is reported with every map.

The authors call LRP patented: free for personal and scientific use; ask them about commercial use.

Deviation from the paper: a layer's bias has the epsilon rule, whatever gamma is.

Extension: sigmoids, and what else is bounded and only multiplies other values (squeeze-and-excitation), are constants. ReLU,
max pooling and batch normalisation keep their gradient, which is the epsilon rule. A network with an operation that has no
rule is refused, and the operation named.
"""

from __future__ import annotations

from visx.methods.contract import Attribution, Request, method
from visx.methods.libragrad import relevance_map
from visx.params import Field, Params


class AttnLRPParams(Params):
    gamma: float = Field(
        0.05, ge=0, le=1000, description="gamma rule of linear layers outside of attention; 0: epsilon rule"
    )
    gamma_conv: float = Field(0.25, ge=0, le=1000, description="gamma rule of convolutions; 0: epsilon rule")


@method(
    "attnlrp",
    family="gradient",
    title="AttnLRP: relevance through attention",
    source="arXiv:2402.05602",
    needs={"grad", "rules"},
    signed=True,
    single_pass=True,
    params=AttnLRPParams,
)
def attnlrp(req: Request, p: AttnLRPParams) -> Attribution:
    from visx.network import rules

    return relevance_map(req, req.relevance(rules.attnlrp(p.gamma, p.gamma_conv)))
