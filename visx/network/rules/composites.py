"""The composites: ordered lists of relevance rules by operation (visx/network/rules/relevance.py).

`LIBRA` (Mehri et al. 2025, arXiv:2411.16760) and `attnlrp` (Achtibat et al. 2024, arXiv:2402.05602) differ in attention: to
LibraGrad its probabilities are constants; AttnLRP linearises the softmax and gives half of a product to each factor.
"""

from __future__ import annotations

from visx.network.rules import local
from visx.network.rules.gamma import LAYERS, gamma
from visx.network.rules.operations import (
    BATCH_NORMS,
    CONVOLUTIONS,
    FUSED_ATTENTION,
    LINEAR,
    PIECEWISE,
    PRODUCTS,
    SCALES,
    SIGMOIDS,
    SOFTMAX,
)
from visx.network.rules.relevance import Composite, Gates, Rule

_Rules = tuple[tuple[frozenset[str], Rule], ...]


def _of(*names: str) -> frozenset[str]:
    return frozenset(names)


BASE: _Rules = (
    (LINEAR | PIECEWISE | {"Div"}, local.plain),
    (frozenset(PRODUCTS), local.shared),
    (_of("Gelu"), local.gelu),
    (_of("Silu"), local.silu),
    (_of("Hardswish"), local.hardswish),
    (_of("Mish"), local.mish),
    (_of("Tanh"), local.tanh),
    (_of("Elu"), local.elu),
    (_of("Celu"), local.celu),
    (_of("Pow"), local.power),
    (_of("NativeLayerNorm"), local.layer_norm),
    (_of("NativeGroupNorm"), local.group_norm),
    (_of("FusedRmsNorm"), local.rms_norm),
    (BATCH_NORMS, local.batch_norm),
)
_GATES = (
    Gates(SCALES, "scale"),
    Gates(SIGMOIDS, "shape"),
    Gates(_of("Tanh", "Erf"), "shape"),
    Gates(_of("Hardtanh", "Clamp"), "shape", shifted=True),
)
_DIVISORS = {"Div": frozenset({1})}

LIBRA = Composite(
    (*BASE, (FUSED_ATTENTION, local.plain)),
    (_GATES[0], Gates(SOFTMAX, "linear"), *_GATES[1:]),
    _DIVISORS | dict.fromkeys(FUSED_ATTENTION, frozenset({0, 1, 3})),
)
_ATTENDING: _Rules = (*BASE, (SOFTMAX, local.plain), (FUSED_ATTENTION, local.attention))


def attnlrp(linear: float = 0.0, convolution: float = 0.0) -> Composite:
    """AttnLRP with the gamma rule on linear layers and on convolutions; 0 is the epsilon rule."""
    gammas = ((LAYERS - CONVOLUTIONS, linear), (CONVOLUTIONS, convolution))
    rules = tuple((layers, gamma(value)) for layers, value in gammas if value)
    return Composite((*rules, *_ATTENDING), _GATES, _DIVISORS, weighs=bool(rules))
