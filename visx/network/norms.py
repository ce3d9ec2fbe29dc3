"""The backward pass of batch and instance normalisation on a CPU, made right where torch's own is wrong.

torch takes a fast path where input and incoming gradient are both dense, and compares their layouts by a guess from their
strides. Where a dimension has size 1 (a batch of one, a map of one row; instance normalisation always makes a batch of
one) its stride may be anything, the guess fails, and a gradient in one layout is read or written as if it were in the
other: the values are right, their places are not. Tokens reshaped to a map have such strides: (1, N, C) transposed and
viewed as (1, C, h, w). Seen in torch 2.14 with 4-D and 5-D inputs in every precision; 2-D and 3-D inputs and other
operators (group and layer normalisation, convolutions, pooling, resampling) were tried alike and are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visx.network.graph import nodes

Grads = tuple[Tensor | None, ...]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def align_norms(output: Tensor) -> None:
    """Let every normalisation in the graph behind `output` receive its gradient in the layout of its input.

    The hooks end with the graph. Values are not changed; where the layouts agree, as in most networks, nothing is copied.
    """
    if output.device.type != "cpu":
        return
    for node in nodes(output):
        if node.name() == "NativeBatchNormBackward0":
            layout = _layout(node._saved_input)
            if layout is not None:
                node.register_prehook(_in(layout))


def _layout(x: Tensor) -> torch.memory_format | None:
    """The layout in which a 4-D or 5-D tensor is dense, None where it is in neither: torch has no fast path for that."""
    channels_last = _CHANNELS_LAST.get(x.dim())
    if channels_last is None:
        return None
    if x.is_contiguous():
        return torch.contiguous_format
    return channels_last if x.is_contiguous(memory_format=channels_last) else None


def _in(layout: torch.memory_format) -> Callable[[Grads], Grads]:
    """A hook that knows the layout alone: one that held the node would keep its graph alive for good."""

    def align(grads: Grads) -> Grads:
        first: Any = grads[0]
        return (None if first is None else first.contiguous(memory_format=layout), *grads[1:])

    return align
