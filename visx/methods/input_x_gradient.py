"""Input x gradient: the input, as the network sees it (normalised), times the gradient; summed over the channels.

M = sum_c x_c dS/dx_c (Shrikumar et al. 2016, arXiv:1605.01713). For a linear score without bias it sums to the score.
SAM (arXiv:2003.08754) explains the probability with it: `--score prob`.
"""

from __future__ import annotations

from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import REDUCE_HELP, Reduce, reduce_channels
from visx.params import Field, Params


class InputXGradientParams(Params):
    reduce: Reduce = Field("sum", description=REDUCE_HELP)


@method(
    "input_x_gradient",
    family="gradient",
    title="Input times gradient",
    source="arXiv:1605.01713",
    needs={"grad"},
    signed=True,
    params=InputXGradientParams,
)
def input_x_gradient(req: Request, p: InputXGradientParams) -> Attribution:
    found = req.input_gradients()
    channels = req.x.unsqueeze(1).to(found.grads) * found.grads
    return Attribution(reduce_channels(channels, p.reduce), channels)
