"""Guided backpropagation: a ReLU passes gradient only where its input and the incoming gradient are both positive.

R_l = (f_l > 0) (R_{l+1} > 0) R_{l+1} (Springenberg et al. 2014, arXiv:1412.6806, figure 1), f_l being the ReLU's input.

The rule applies to every ReLU: modules, functions, reused ones, in-place ones, and ReLUs written as arithmetic
(`maximum(x, 0)`, `where(x > 0, x, 0)`, `x * (x > 0)`, ...).

Extension beyond the paper: ReLU6 has the rule too, with 0 < f < 6. Other activations (GELU, SiLU, leaky ReLU, thresholds,
...) keep their plain gradient: a model that has such activations beside ReLUs gets a warning, a model without any ReLU is
refused.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from visx.methods.backprop import BackpropParams
from visx.methods.contract import Attribution, Request, method
from visx.ops.maps import reduce_channels

if TYPE_CHECKING:
    from torch import Tensor


@method(
    "guided_backprop",
    family="gradient",
    title="Guided backpropagation",
    source="arXiv:1412.6806",
    needs={"grad", "relu"},
    picture="gradient",
    single_pass=True,
    params=BackpropParams,
)
def guided_backprop(req: Request, p: BackpropParams) -> Attribution:
    result = req.input_gradients("guided")
    warnings = activation_warnings(result.other_activations, result.scores)
    return Attribution(reduce_channels(result.grads, p.reduce), result.grads, warnings=warnings)


def activation_warnings(others: Counter[str], scores: Tensor) -> list[list[list[str]]] | None:
    """The warning that activations other than ReLU kept their plain gradient, once for each image and target.

    `others` counts those activations by name; without any the result is None. `scores` is (B, T).
    """
    if not others:
        return None
    text = f"activations without a ReLU rule keep their plain gradient: {', '.join(others)}"
    batch, count = scores.shape
    return [[[text] for _ in range(count)] for _ in range(batch)]
