"""Backpropagation: the gradient of a class score with respect to the input ("vanilla" saliency).

M = max_c |dS/dx_c| over the colour channels c (Simonyan et al. 2013, arXiv:1312.6034, section 3). The parameter `reduce`
chooses another way to make one map of the channels.

Deviations from the paper: none.
"""

from __future__ import annotations

from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import REDUCE_HELP, Reduce, reduce_channels
from visx.params import Field, Params


class BackpropParams(Params):
    reduce: Reduce = Field("max_abs", description=REDUCE_HELP)


@method(
    "backprop",
    family="gradient",
    title="Gradient of the score (vanilla saliency)",
    source="arXiv:1312.6034",
    needs={"grad"},
    picture="gradient",
    single_pass=True,
    params=BackpropParams,
)
def backprop(req: Request, p: BackpropParams) -> Attribution:
    grads = req.input_gradients().grads
    return Attribution(reduce_channels(grads, p.reduce), channels=grads)
