"""Input x gradient: the input times the gradient of the score with respect to it, summed over the channels.

M = sum_c x_c dS/dx_c, x the input after normalisation (Shrikumar et al. 2016, arXiv:1605.01713). For a score that is linear
in the input and has no bias, the map sums to the score.

Deviations from the paper: none. SAM (arXiv:2003.08754) explains the probability with this method: `--score prob`.
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
    single_pass=True,
    params=InputXGradientParams,
)
def input_x_gradient(req: Request, p: InputXGradientParams) -> Attribution:
    grads = req.input_gradients().grads
    channels = req.x.unsqueeze(1).to(grads) * grads
    return Attribution(reduce_channels(channels, p.reduce), channels)
