"""Guided Grad-CAM: the guided-backpropagation gradient times the upsampled Grad-CAM, channel by channel.

M_c = R_c * L for each colour channel c, R_c (H, W) the guided-backpropagation gradient, L (H, W) the Grad-CAM, upsampled
bilinearly (Selvaraju et al. 2016, arXiv:1610.02391, section 3.2). The picture shows the channels M_c as colours; `reduce`
makes the raw map of them.

Deviations from the paper: none. `rescale=minmax` first scales the Grad-CAM of each map to 0..1, as the program
kazuto1011/grad-cam-pytorch does; the paper multiplies the Grad-CAM as it is.

Extension beyond the paper: several layers (`-l A+B`) give one Grad-CAM, fused as `visx methods gradcam` says.
"""

from __future__ import annotations

from typing import Literal

from visx.methods.backprop import BackpropParams
from visx.methods.contract import Attribution, Request, method
from visx.methods.gradcam import GradCAMParams, gradcam
from visx.methods.guided_backprop import guided_backprop
from visx.ops.maps import REDUCE_HELP, Reduce, reduce_channels, upsample
from visx.params import Field, Params


class GuidedGradCAMParams(Params):
    reduce: Reduce = Field("max_abs", description=REDUCE_HELP)
    rescale: Literal["none", "minmax"] = Field(
        "none", description="scale the Grad-CAM before it multiplies: none, or minmax to 0..1"
    )


@method(
    "guided_gradcam",
    family="cam",
    title="Guided Grad-CAM",
    source="arXiv:1610.02391",
    needs={"grad", "layer", "relu"},
    picture="gradient",
    fuses=True,
    params=GuidedGradCAMParams,
)
def guided_gradcam(req: Request, p: GuidedGradCAMParams) -> Attribution:
    coarse = gradcam(req, GradCAMParams())
    guided = guided_backprop(req, BackpropParams())
    cam = upsample(coarse.map, req.x.shape[-2:])
    if p.rescale == "minmax":
        low, high = cam.amin((-2, -1), keepdim=True), cam.amax((-2, -1), keepdim=True)
        cam = (cam - low) / (high - low).clamp_min(1e-30)
    assert guided.channels is not None
    channels = cam.unsqueeze(2) * guided.channels
    batch, count = cam.shape[:2]
    warnings = [[coarse.warned(b, t) + guided.warned(b, t) for t in range(count)] for b in range(batch)]
    return Attribution(reduce_channels(channels, p.reduce), channels, warnings=warnings)
