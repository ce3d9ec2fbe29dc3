"""LibraGrad: input times gradient, with a backward pass in which transformers conserve the score.

M = sum_c x_c g_c, where g is the gradient of the score under these rules (Mehri et al. 2025, arXiv:2411.16760), by
operation: the probabilities of an attention are constants; of an activation x g(x) (GELU, SiLU, Hardswish, Mish) g(x) is a
constant; of a normalisation (layer, RMS, group, instance, division by a norm) the scale is a constant; of a product of two
values (a gated MLP) each has half of the gradient. All else keeps its gradient. The network is then linear along the
ray of its own values, but for biases (FullGrad-completeness): without biases the map sums to the score exactly; with them
the rest is theirs. The sum is reported with every map.

One forward pass, which is the network's own (fused attention too), and one backward pass.

Networks of ReLUs, max pooling and batch normalisation have these properties as they are: there LibraGrad is
input_x_gradient. A network with an operation that has no rule is refused, and the operation named.

Deviation from the paper: of the methods that it balances this is input times gradient, taken at the pixels (after
normalisation). FullGrad+, the mean of input times gradient over the inputs of all blocks, is not here.

Extension: sigmoids, and what else is bounded and only multiplies other values (squeeze-and-excitation), are constants, as
gates are. tanh, ELU and powers as activations have the rule of x g(x) too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.methods.contract import Attribution, Request, method
from visx.params import Params

if TYPE_CHECKING:
    from visx.network.gradients import InputGradients


@method(
    "libragrad",
    family="gradient",
    title="LibraGrad: input times a balanced gradient",
    source="arXiv:2411.16760",
    needs={"grad", "rules"},
    signed=True,
    single_pass=True,
)
def libragrad(req: Request, p: Params) -> Attribution:
    from visx.network.rules import LIBRA

    return relevance_map(req, req.relevance(LIBRA))


def relevance_map(req: Request, result: InputGradients) -> Attribution:
    """The relevance of every pixel, (B, T, H, W), given gradients under relevance rules; its sum is among the extras."""
    channels = req.x.unsqueeze(1).to(result.grads) * result.grads
    maps = channels.sum(2)
    sums = maps.sum((2, 3)).tolist()
    return Attribution(maps, channels, extras=[[{"relevance_sum": value} for value in row] for row in sums])
