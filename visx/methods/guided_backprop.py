"""Guided backpropagation: a ReLU passes gradient only where its input and the incoming gradient are both positive.

R_l = (f_l > 0) (R_{l+1} > 0) R_{l+1} (Springenberg et al. 2014, arXiv:1412.6806, figure 1). The rule reaches every
ReLU, functional, reused and in-place ones too, those written as arithmetic (`maximum(x, 0)`, `where(x > 0, x, 0)`,
`x * (x > 0)`, ...), and ReLU6 (passing where 0 < f < 6). Other activations (GELU, SiLU, leaky ones, thresholds, ...) keep
their plain gradient: a model with some of them is warned about, one without any ReLU is refused.
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
    params=BackpropParams,
)
def guided_backprop(req: Request, p: BackpropParams) -> Attribution:
    found = req.input_gradients("guided")
    return Attribution(
        reduce_channels(found.grads, p.reduce), found.grads, warnings=left_alone(found.other_activations, found.scores)
    )


def left_alone(others: Counter[str], scores: Tensor) -> list[list[list[str]]] | None:
    """One warning for every map if activations other than ReLU kept their plain gradient, else None."""
    if not others:
        return None
    text = f"activations without a ReLU rule keep their plain gradient: {', '.join(others)}"
    batch, count = scores.shape
    return [[[text] for _ in range(count)] for _ in range(batch)]
