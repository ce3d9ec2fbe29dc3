"""ReLU rules on a graph that autograd has recorded, node by node."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor

from visx.network.graph import nodes
from visx.network.rules.activations import Activations, Rule

# What autograd calls the backward passes of the same
_OTHER_NODES = {
    "GeluBackward0": "gelu", "SiluBackward0": "silu", "HardswishBackward0": "hardswish",
    "HardsigmoidBackward0": "hardsigmoid", "EluBackward0": "elu", "LeakyReluBackward0": "leaky_relu", "LeakyReluBackward1": "leaky_relu",
    "MishBackward0": "mish", "SoftplusBackward0": "softplus", "PreluKernelBackward0": "prelu",
    "SigmoidBackward0": "sigmoid", "TanhBackward0": "tanh", "CeluBackward0": "celu",
    "RreluWithNoiseBackward0": "rrelu",
}  # fmt: skip


# Nodes that may be a ReLU written as arithmetic, which only the values of the pass can tell
_SUSPECTS = {
    "MaximumBackward0", "FmaxBackward0", "WhereBackward0", "MaskedFillBackward0", "IndexPutBackward0", "AbsBackward0",
    "ClampBackward0", "ClampMinBackward1",
}  # fmt: skip


def guide(output: Tensor, rule: Rule = "guided") -> Activations | None:
    """Let every ReLU in the graph behind `output` differentiate by a rule, which ends with the graph.

    None where the graph does not tell: work in place on slices may hide a ReLU, and arithmetic may be one.
    """
    activations = Activations()
    for node in nodes(output):
        name = node.name()
        if _is_relu(node, name):
            if name.startswith("Clamp") and _clamp_passes_its_bounds():
                return None
            activations.relus += 1
            node.register_hook(_HOOKS[rule])
        elif name in _OTHER_NODES:
            activations.others[_OTHER_NODES[name]] += 1
        elif name in _SUSPECTS or name.endswith("CopySlices") or _masks(node, name) or _cuts_at_zero(node, name):
            return None
    activations.others += custom_functions(output)
    return activations


def complete(output: Tensor, rule: Rule) -> int:
    """Hang the rule on the ReLUs in the graph that no call has shown; how many they are."""
    count = 0
    for node in nodes(output):
        if _is_relu(node, node.name()):
            node.register_hook(_HOOKS[rule])
            count += 1
    return count


def custom_functions(output: Tensor) -> Counter[str]:
    """The autograd functions of somebody's own in the graph behind `output`: each may be a ReLU, and nobody can tell."""
    result: Counter[str] = Counter()
    for node in nodes(output):
        function: Any = getattr(node, "_forward_cls", None)
        if function is not None and function.__module__.split(".")[0] != "visx":
            result[function.__name__] += 1
    return result


# Where the nodes that may be a ReLU keep their floor
_BOUNDS = {
    "HardtanhBackward0": "_saved_min_val", "ClampBackward1": "_saved_min", "ClampMinBackward0": "_saved_min",
    "ThresholdBackward0": "_saved_threshold", "ThresholdBackward1": "_saved_threshold",
}  # fmt: skip


# Activations that are a ReLU where their slope below zero is 0
_SLOPES = {
    "LeakyReluBackward0": "_saved_negative_slope", "LeakyReluBackward1": "_saved_negative_slope",
    "EluBackward0": "_saved_alpha", "PreluKernelBackward0": "_saved_weight",
}  # fmt: skip


def _is_relu(node: Any, name: str) -> bool:
    if name in _BOUNDS:
        return bool(getattr(node, _BOUNDS[name]) == 0)
    if name in _SLOPES:
        slope = getattr(node, _SLOPES[name])
        return not bool(slope.any()) if isinstance(slope, Tensor) else bool(slope == 0)
    return bool(name == "ReluBackward0")


def _masks(node: Any, name: str) -> bool:
    """Whether a product has a factor of zeros and ones, of its own shape, that no gradient goes to."""
    if name != "MulBackward0":
        return False
    (first, _), (second, _) = node.next_functions
    if (first is None) == (second is None):
        return False
    factor: Tensor | None = node._saved_self if first is None else node._saved_other
    if factor is None or factor.dim() == 0 or list(factor.shape) != list(node._input_metadata[0].shape):
        return False
    return factor.dtype == torch.bool or bool(((factor == 0) | (factor == 1)).all())


_CEILINGS = {"ClampBackward1": "_saved_max", "ClampMaxBackward0": "_saved_max"}


def _cuts_at_zero(node: Any, name: str) -> bool:
    """Whether what is above zero is cut off: x less that is a ReLU."""
    return name == "MinimumBackward0" or (name in _CEILINGS and getattr(node, _CEILINGS[name]) == 0)


@cache
def _clamp_passes_its_bounds() -> bool:
    """Whether a clamp's derivative is 1 at its very bounds, as in older versions of torch, where a ReLU's is 0."""
    with torch.enable_grad():
        zero = torch.zeros(1, requires_grad=True)
        (grad,) = torch.autograd.grad(zero.clamp(min=0), zero)
    return bool(grad)


def _guided(grads: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """A ReLU's own backward pass masks by its input; what is left of the rule is the sign. Its result is its own,
    and None where no gradient reaches it."""
    return (None if grads[0] is None else grads[0].relu_(), *grads[1:])


def _deconv(grads: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The incoming gradient where it is positive, whatever the input was."""
    return (None if incoming[0] is None else incoming[0].relu(), *grads[1:])


_HOOKS = {"guided": _guided, "deconv": _deconv}
