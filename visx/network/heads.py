"""How a network ends, read from the autograd graph of one pass over a single picture.

Two questions: are the values that came out those of a softmax or a sigmoid, and did any map make classes of the
features? Both are answered by walking back from the output over the names of autograd's nodes. Parameters are frozen
and so have no nodes: every branch is data that came from the picture. What is not recognised counts as a classifier,
because a wrong refusal is worse than to take a backbone's word for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Squash = Literal["softmax", "sigmoid", ""]
DEEPEST = 200  # nodes between the output and the classifier


def _names(text: str) -> frozenset[str]:
    """Autograd's names of operations, with the counters that it appends."""
    return frozenset(f"{name}Backward{n}" for name in text.split() for n in ("", 0, 1, 2, 3))


_VIEWS = _names(
    "View UnsafeView ReshapeAlias Squeeze Unsqueeze Slice Select Index IndexSelect Gather Permute Transpose T Clone Alias "
    "Expand ToCopy Cat Stack Unbind Split SplitWithSizes Clamp ClampMin ClampMax AsStrided Unflatten MmT"
)
_JOINING = _names("Cat Stack")
_ADDING = _names("Add Sub Rsub Maximum Minimum")
_SCALING = _names("Mul Div Pow Neg Exp Log Sqrt Rsqrt Sum Abs")
_REDUCING = _names(
    "Mean Sum Max Amax Prod AvgPool2D AdaptiveAvgPool2D AdaptiveMaxPool2D MaxPool2DWithIndices Logsumexp"
)
_MAX_POOLING = _names("MaxPool2DWithIndices")
_NORMS = _names(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm LinalgVectorNorm"
)
_STEPS = _names("Relu LeakyRelu Hardtanh Threshold Tanh Elu Celu Softplus PreluKernel ClampMin Clamp")
_SMOOTH = _names("Gelu Silu Hardswish Mish")
_LINEAR = _names("Addmm Mm Bmm Baddbmm Mv Addmv Linear")
_CONVOLUTIONS = _names("Convolution MkldnnConvolution CudnnConvolution ThnnConv2D")
_SOFTMAX, _SIGMOID = _names("Softmax"), _names("Sigmoid Hardsigmoid")
_SQUASHING = _SOFTMAX | _SIGMOID | _names("LogSoftmax")
_PASSING = _VIEWS | _ADDING | _SCALING | _REDUCING | _NORMS | _STEPS | _SMOOTH | _SQUASHING


@dataclass(frozen=True)
class Ending:
    """`known`: there was a graph to read. `squash`: the activation whose values the output still holds; `mixed` says that
    they were averaged, multiplied or added on the way. `classifier` is False where the output is the features themselves."""

    known: bool = False
    squash: Squash = ""
    mixed: bool = False
    classifier: bool = True


def ending(output: Tensor) -> Ending:
    """How the network that made `output` (of one picture, with its graph) ends."""
    if output.grad_fn is None:
        return Ending()
    kinds, mixed = _squashes(output.grad_fn)
    squash: Squash = "softmax" if kinds == {"softmax"} else "sigmoid" if kinds == {"sigmoid"} else ""
    return Ending(True, squash, mixed, _classifies(output.grad_fn))


def _squashes(node: Any) -> tuple[set[str], bool]:
    """The kinds of the first operations behind a node that do more than arrange or mix values ("softmax", "sigmoid" or
    "other"), and whether anything mixed them."""
    kinds: set[str] = set()
    seen, waiting, mixed = {node}, [node], False
    while waiting:
        node = waiting.pop()
        name = node.name()
        if name in _SOFTMAX or name in _SIGMOID:
            kinds.add("softmax" if name in _SOFTMAX else "sigmoid")
        elif name in _VIEWS | _ADDING | _SCALING | _REDUCING:
            mixed = mixed or name not in _VIEWS
            fresh = [n for n in _inputs(node) if n not in seen]
            seen |= set(fresh)
            waiting += fresh
        else:
            kinds.add("other")
    return kinds, mixed


def _classifies(node: Any, bent: str = "", depth: int = 0) -> bool:
    """Whether a map that could tell classes apart stands behind a node. `bent` names the activation that was passed on the
    way back from the output: "step" (a ReLU's like may stand behind a classifier) or "smooth" (none does)."""
    name, inputs, shape = node.name(), _inputs(node), _shape(node)
    wide = _wide(shape)  # still has positions besides channels
    if depth > DEEPEST or not inputs:
        return True
    if name in _CONVOLUTIONS or name in _LINEAR:
        return len(inputs) > 1 or _is_classifier(node, inputs[0], bent, wide)
    if name not in _PASSING or (
        name not in _JOINING and all(_numel(_shape(n)) < _numel(shape) for n in inputs if _shape(n))
    ):
        return True  # unknown, or the classes were made here: a distance to prototypes, a sum over them
    if wide and (name in _NORMS or name in _MAX_POOLING):
        return False
    if name in _SMOOTH or name in _STEPS:
        bent = "smooth" if name in _SMOOTH else bent or "step"
    elif not wide and name in _VIEWS and any(_wide(_shape(n)) for n in inputs):
        bent = bent or "step"  # a map laid out as a vector
    if len(inputs) == 1:
        return _classifies(inputs[0], bent, depth + 1)
    if wide and name in _ADDING and _residual(inputs):
        return False
    if wide and name in _SCALING:  # a gate beside what it gates
        inputs = [n for n in inputs if n.name() not in _SQUASHING] or inputs
    return (all if wide else any)(_classifies(n, bent, depth + 1) for n in inputs)


def _is_classifier(node: Any, source: Any, bent: str, wide: bool) -> bool:
    """Whether a linear layer or convolution is one, and not the last of the features.

    One that nothing bends afterwards is. Behind one there may be a ReLU (SqueezeNet's 1x1 convolution); a layer whose
    ReLU makes features keeps the number of channels (VGG's fc7), or is a larger convolution that does not lower it.
    """
    if not bent:
        return True
    out, into = _channels(node), _channels(source)
    if node.name() in _CONVOLUTIONS and wide:
        kernel = getattr(node, "_saved_weight", None)
        return kernel is None or math.prod(kernel.shape[2:]) == 1 or out < into
    return bent == "step" and out != into


def _residual(inputs: list[Any]) -> bool:
    """Whether one of the operands of an addition was made from another of them."""
    return any(a is not b and _behind(a, b) for a in inputs for b in inputs)


def _behind(node: Any, other: Any) -> bool:
    """Whether `other` is among the ancestors of `node`, or one of `other`'s own inputs is: dropout and scaling seen through."""
    wanted = {other}
    while other.name() in _VIEWS | _SCALING and len(_inputs(other)) == 1:
        other = _inputs(other)[0]
        wanted.add(other)
    seen, waiting = {node}, [node]
    while waiting:
        fresh = [n for n in _inputs(waiting.pop()) if n not in seen]
        if wanted.intersection(fresh):
            return True
        seen |= set(fresh)
        waiting += fresh
    return False


def _inputs(node: Any) -> list[Any]:
    return [before for before, _ in node.next_functions if before is not None]


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's (first) forward output; empty where autograd does not say."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _channels(node: Any) -> int:
    shape = _shape(node)
    return shape[1] if len(shape) == 4 else shape[-1] if shape else 0


def _wide(shape: tuple[int, ...]) -> bool:
    return sum(n > 1 for n in shape) > 1


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
