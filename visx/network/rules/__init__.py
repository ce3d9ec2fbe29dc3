"""Backward rules. ReLU rules: how the gradient passes a ReLU in guided backpropagation and in the deconvnet.

deconvnet (Zeiler & Fergus 2013, arXiv:1311.2901): ReLU of the incoming gradient, whatever the forward sign was.
guided (Springenberg et al. 2014, arXiv:1412.6806): where the incoming gradient is positive *and* the ReLU passed its
input. For ReLU6 "passed" means 0 < x < 6, where its derivative is 1; the deconvnet's rule looks at no forward value.

Within `Rules` every call of a ReLU, by whichever name or arithmetic, records the rule's backward pass instead of its own.
`guide` hangs the guided rule, whose mask is the ReLU's own, on a graph that autograd has recorded: there a ReLU is one of
a few kinds of node, and the forward pass costs nothing more (`Rules` takes a few microseconds a call, 6 % of a pass on
efficientnet_lite0). Work in place on slices hides a ReLU from the graph, and of arithmetic it keeps too few values:
`guide` gives up then, and the pass is run again within `Rules`. The deconvnet always uses `Rules`: no mask is kept or
applied.

Relevance rules (visx/network/rules/relevance.py): a `Composite` says how the gradient passes every operation, so that input
times gradient becomes a share of the score.
"""

from __future__ import annotations

from visx.network.rules.activations import Activations, Rule
from visx.network.rules.arithmetic import Arithmetic
from visx.network.rules.calls import OTHER_ACTIVATIONS, RELUS, ReluCall, Rules, relu_call
from visx.network.rules.chefer import CHEFER
from visx.network.rules.composites import LIBRA, attnlrp
from visx.network.rules.nodes import complete, custom_functions, guide
from visx.network.rules.relevance import Composite, Graph, lacking

__all__ = [
    "CHEFER",
    "LIBRA",
    "OTHER_ACTIVATIONS",
    "RELUS",
    "Activations",
    "Arithmetic",
    "Composite",
    "Graph",
    "ReluCall",
    "Rule",
    "Rules",
    "attnlrp",
    "complete",
    "custom_functions",
    "guide",
    "lacking",
    "relu_call",
]
