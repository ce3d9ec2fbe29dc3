"""Deconvnet: a ReLU passes ReLU of the incoming gradient, whatever its input was.

R_l = (R_{l+1} > 0) R_{l+1} (Zeiler & Fergus 2013, arXiv:1311.2901; as a backward pass in Springenberg et al. 2014,
arXiv:1412.6806, figure 1). Max-pooling's backward pass is unpooling by switches, a convolution's is the transposed
filter without bias, so two things are the same vector-Jacobian product with this rule:

- for a class, seeded with the score (the gradient's analogue);
- with `unit`, the Zeiler-Fergus projection of a unit of `--layer`, seeded with the activation itself, all else zero:
  `unit=max` the layer's strongest unit, `unit=C` the strongest unit of a channel, `unit=C,Y,X` one unit.

The unit's own layer is taken as it is (no rectification of its output), as in the authors' figures for convolutions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import field_validator

from visx.errors import usage
from visx.methods.backprop import BackpropParams
from visx.methods.contract import Attribution, Request, Subject, method
from visx.methods.guided_backprop import left_alone
from visx.ops.maps import reduce_channels
from visx.params import Field

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
    params=DeconvnetParams,
)
def deconvnet(req: Request, p: DeconvnetParams) -> Attribution:
    if p.unit:
        return _project(req, p, p.unit)
    found = req.input_gradients("deconv")
    return Attribution(
        reduce_channels(found.grads, p.reduce), found.grads, warnings=left_alone(found.other_activations, found.scores)
    )


def _project(req: Request, p: DeconvnetParams, unit: str) -> Attribution:
    import torch

    assert req.layer is not None
    picked: list[tuple[int, int, int]] = []

    def seed(activation: Tensor) -> Tensor:
        seeds = torch.zeros_like(activation)
        for image, maps in enumerate(activation):
            picked.append(_locate(maps, unit, str(req.layer)))
            seeds[image][picked[-1]] = maps[picked[-1]]
        return seeds

    grads, activation = req.network.project(req.x, req.layer, seed, "deconv")
    channels = grads.unsqueeze(1)
    subjects = [
        [Subject(c, f"{req.layer}[{c},{y},{x}]", f"unit-{c}-{y}-{x}", float(activation[image, c, y, x]), "activation")]
        for image, (c, y, x) in enumerate(picked)
    ]
    extras = [[{"unit": list(where)}] for where in picked]
    return Attribution(reduce_channels(channels, p.reduce), channels, extras=extras, subjects=subjects)


def _locate(maps: Tensor, unit: str, layer: str) -> tuple[int, int, int]:
    """(K, h, w) activations and a `unit` -> (channel, y, x)."""
    channels, height, width = maps.shape
    if "," in unit:
        c, y, x = map(int, unit.split(","))
        if c >= channels or y >= height or x >= width:
            raise usage(f"unit {unit} is outside layer {layer}", f"it has {channels} channels of {height} x {width}")
        return c, y, x
    if unit == "max":
        flat = int(maps.argmax())
        return flat // (height * width), flat // width % height, flat % width
    c = int(unit)
    if c >= channels:
        raise usage(f"channel {unit} is outside layer {layer}", f"it has {channels} channels of {height} x {width}")
    flat = int(maps[c].argmax())
    return c, flat // width, flat % width
