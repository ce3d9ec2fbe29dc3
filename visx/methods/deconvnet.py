"""Deconvnet: a backward pass in which a ReLU passes the positive part of the incoming signal, whatever its input was.

R_l = (R_{l+1} > 0) R_{l+1} (Zeiler & Fergus 2013, arXiv:1311.2901; written as a backward pass in Springenberg et al. 2014,
arXiv:1412.6806, figure 1). The backward pass of max pooling is the paper's unpooling by switches, and that of a convolution
is the transposed filter without bias. So one vector-Jacobian product with this rule for ReLU gives both of the following:

- The map of a class: the product starts from the score.
- The map of a unit (`unit`): the projection of Zeiler and Fergus. The product starts from the activation of one unit of
  `--layer`; all other units start from zero. `unit=max` takes the layer's strongest unit, `unit=C` the strongest unit of
  channel C, `unit=C,Y,X` the unit at row Y and column X of channel C.

Deviation from the paper: the layer's own output is not rectified before the projection, as in the authors' figures for
convolutions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import field_validator

from visx.errors import usage
from visx.methods.backprop import BackpropParams
from visx.methods.contract import Attribution, Request, Subject, method
from visx.methods.guided_backprop import activation_warnings
from visx.ops.maps import reduce_channels
from visx.params import Field
from visx.targets.contract import Identity

if TYPE_CHECKING:
    from torch import Tensor


class DeconvnetParams(BackpropParams):
    unit: str | None = Field(
        None, description="project a unit of --layer: max, CHANNEL (its strongest unit) or CHANNEL,Y,X"
    )

    @field_validator("unit")
    @classmethod
    def _known_form(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"max|\d+|\d+,\d+,\d+", value):
            raise ValueError("not max, CHANNEL or CHANNEL,Y,X")
        return value

    def extra_needs(self) -> frozenset[str]:
        return frozenset({"layer"}) if self.unit else frozenset()

    def of_a_class(self) -> bool:
        return not self.unit


@method(
    "deconvnet",
    family="gradient",
    title="Deconvnet: of a class, or of a unit of a layer",
    source="arXiv:1311.2901",
    needs={"grad", "relu"},
    picture="gradient",
    single_pass=True,
    params=DeconvnetParams,
)
def deconvnet(req: Request, p: DeconvnetParams) -> Attribution:
    if p.unit:
        return _project(req, p, p.unit)
    result = req.input_gradients("deconv")
    warnings = activation_warnings(result.other_activations, result.scores)
    return Attribution(reduce_channels(result.grads, p.reduce), result.grads, warnings=warnings)


def _project(req: Request, p: DeconvnetParams, unit: str) -> Attribution:
    """The map of one unit for each image: maps (B, 1, H, W)."""
    import torch

    assert req.layer is not None
    units: list[tuple[int, int, int]] = []  # (channel, y, x), one an image

    def seed(activation: Tensor) -> Tensor:
        seeds = torch.zeros_like(activation)
        for image, maps in enumerate(activation):
            units.append(_locate(maps, unit, str(req.layer)))
            seeds[image][units[-1]] = maps[units[-1]]
        return seeds

    grads, activation = req.network.project(req.x, req.layer, seed, "deconv")
    channels = grads.unsqueeze(1)
    subjects = [
        [Subject(_identity(req.layer, place), float(activation[image][place]), "activation")]
        for image, place in enumerate(units)
    ]
    extras = [[{"unit": list(where)}] for where in units]
    return Attribution(reduce_channels(channels, p.reduce), channels, extras=extras, subjects=subjects)


def _identity(layer: str, unit: tuple[int, int, int]) -> Identity:
    """What tells the unit (channel, y, x) of a layer from others."""
    c, y, x = unit
    return Identity("unit", f"unit-{c}-{y}-{x}", f"{layer}[{c},{y},{x}]", c, {"y": y, "x": x})


def _locate(maps: Tensor, unit: str, layer: str) -> tuple[int, int, int]:
    """The place (channel, y, x) in the activations `maps` (K, h, w) that the text `unit` asks for.

    Raises `VisxError` (usage, exit 2) where that place is outside the layer.
    """
    import torch

    channels, height, width = maps.shape
    if "," in unit:
        c, y, x = map(int, unit.split(","))
        if c >= channels or y >= height or x >= width:
            raise usage(f"unit {unit} is outside layer {layer}", f"it has {channels} channels of {height} x {width}")
        return c, y, x
    if unit == "max":
        c, y, x = map(int, torch.unravel_index(maps.argmax(), maps.shape))
        return c, y, x
    c = int(unit)
    if c >= channels:
        raise usage(f"channel {unit} is outside layer {layer}", f"it has {channels} channels of {height} x {width}")
    y, x = map(int, torch.unravel_index(maps[c].argmax(), maps.shape[1:]))
    return c, y, x
