"""ReLU rules on a graph that autograd has recorded, node by node."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor

from visx.network.graph import nodes
from visx.network.rules.met import Met

# What autograd calls the backward passes of the same
_OTHER_NODES = {
    "GeluBackward0": "gelu", "SiluBackward0": "silu", "HardswishBackward0": "hardswish",
    "HardsigmoidBackward0": "hardsigmoid", "EluBackward0": "elu", "LeakyReluBackward0": "leaky_relu",
    "MishBackward0": "mish", "SoftplusBackward0": "softplus", "PreluKernelBackward0": "prelu",
    "SigmoidBackward0": "sigmoid", "TanhBackward0": "tanh", "CeluBackward0": "celu",
    "RreluWithNoiseBackward0": "rrelu",
}  # fmt: skip


def guide(output: Tensor) -> Met | None:
    """Let every ReLU in the graph behind `output` differentiate by the guided rule, which ends with the graph.

    None where that cannot be: the graph has work in place on slices, which may hide a ReLU.
    """
    found = Met()
    for node in nodes(output):
        name = node.name()
        if name == "ReluBackward0" or (name in _BOUNDS and _floor(node) == 0):
            if name.startswith("Clamp") and _clamp_passes_its_bounds():
                return None
            found.met += 1
            node.register_hook(_guided)
        elif name in _OTHER_NODES:
            found.others[_OTHER_NODES[name]] += 1
        elif name.endswith("CopySlices"):
            return None
    found.others += strangers(output)
    return found


def strangers(output: Tensor) -> Counter[str]:
    """The autograd functions of somebody's own in the graph behind `output`: each may be a ReLU, and nobody can tell."""
    found: Counter[str] = Counter()
    for node in nodes(output):
        function: Any = getattr(node, "_forward_cls", None)
        if function is not None and function.__module__.split(".")[0] != "visx":
            found[function.__name__] += 1
    return found


# Where the nodes that may be a ReLU keep their floor
_BOUNDS = {
    "HardtanhBackward0": "_saved_min_val", "ClampBackward1": "_saved_min", "ClampMinBackward0": "_saved_min",
    "ThresholdBackward0": "_saved_threshold", "ThresholdBackward1": "_saved_threshold",
}  # fmt: skip


def _floor(node: Any) -> float | None:
    floor: float | None = getattr(node, _BOUNDS[node.name()])
    return floor


@cache
def _clamp_passes_its_bounds() -> bool:
    """Whether a clamp's derivative is 1 at its very bounds, as in older versions of torch, where a ReLU's is 0."""
    with torch.enable_grad():
        zero = torch.zeros(1, requires_grad=True)
        (grad,) = torch.autograd.grad(zero.clamp(min=0), zero)
    return bool(grad)


def _guided(grads: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> tuple[Tensor | None]:
    """A ReLU's own backward pass masks by its input; what is left of the rule is the sign. Its result is its own,
    and None where no gradient reaches it."""
    return (None if grads[0] is None else grads[0].relu_(),)
