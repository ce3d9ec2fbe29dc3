"""Calls of convolutions, and oneDNN's own convolution: with a packed weight, and a ReLU behind it in one go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NONE: tuple[str, list[float]] = ("none", [])
_RELU: tuple[str, list[float]] = ("relu", [])

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding and dilation along each axis, and groups


@dataclass(frozen=True)
class Convolution:
    """A call of F.conv1d, conv2d or conv3d: `func`, and its arguments by name."""

    func: Any
    given: dict[str, Any]

    @staticmethod
    def called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Convolution:
        return Convolution(func, {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs})

    def run(self, **instead: Tensor | None) -> Tensor:
        """Its output, with other arguments `instead` of its own."""
        output: Tensor = self.func(**{**self.given, **instead})
        return output

    def geometry(self) -> Geometry | None:
        """Stride, padding and dilation along each axis, and groups, for the operators beneath; None for a call that they
        don't know: padding by name, or an image without a batch."""
        x, weight, padding = self.given["input"], self.given["weight"], self.given.get("padding", 0)
        if isinstance(padding, str) or x.dim() != weight.dim():
            return None

        def each(value: Any) -> list[int]:
            values = [value] if isinstance(value, int) else list(value)
            return values * (weight.dim() - 2) if len(values) == 1 else values

        stride, dilation = each(self.given.get("stride", 1)), each(self.given.get("dilation", 1))
        return stride, each(padding), dilation, self.given.get("groups", 1)


def packed(weight: Tensor, call: Convolution) -> Tensor:
    """A convolution's weight in oneDNN's own layout, so that not every pass has to bring it there."""
    stride, padding, dilation, groups = call.geometry() or ([], [], [], 1)
    shape = list(call.given["input"].shape)
    found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)
    return found


def pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, ceiling: float | None = None
) -> Tensor:
    """conv2d(x, ...), or min(max(conv2d(x, ...), 0), ceiling), by oneDNN and with a packed weight."""
    stride, padding, dilation, groups = geometry
    does, bounds = _NONE if ceiling is None else _RELU if ceiling == math.inf else ("hardtanh", [0.0, ceiling])
    output: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
        x, weight, bias, padding, stride, dilation, groups, does, bounds, ""
    )
    return output
