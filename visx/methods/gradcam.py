"""Grad-CAM: the feature maps of a layer, weighted by the spatial mean of their gradients, summed, then ReLU.

alpha_k = mean_ij dS/dA_kij, M = ReLU(sum_k alpha_k A_k) (Selvaraju et al. 2016, arXiv:1610.02391, equations 1 and 2).
Map and gradient are of the same tensor: the layer's output before whatever follows works in place on it. A map that is
negative everywhere comes out as zeros with a warning; `relu=false` shows the map before its ReLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from visx.network.grid import Layer


class GradCAMParams(Params):
    relu: bool = Field(True, description="keep positive evidence alone; false gives the signed map")


@method(
    "gradcam",
    family="cam",
    title="Grad-CAM",
    source="arXiv:1610.02391",
    needs={"grad", "layer"},
    params=GradCAMParams,
)
def gradcam(req: Request, p: GradCAMParams) -> Attribution:
    import torch

    assert req.layer is not None
    found = req.network.layer_gradients(req.x, req.layer, req.targets, req.kind)
    alpha_btk = found.grads.mean((-2, -1))
    signed = torch.bmm(alpha_btk, found.activation.flatten(2)).unflatten(2, found.activation.shape[2:])
    batch, count = signed.shape[:2]
    warnings: list[list[list[str]]] = [[[] for _ in range(count)] for _ in range(batch)]
    if p.relu:
        hidden = ((signed.amax((-2, -1)) <= 0) & (signed.amin((-2, -1)) < 0)).tolist()
        for b in range(batch):
            for t in range(count):
                if hidden[b][t]:
                    warnings[b][t].append(
                        "Grad-CAM is negative everywhere, so its ReLU leaves zeros: see -p relu=false"
                    )
    for row in warnings:
        for cell in row:
            cell += _said_of(found.layer)
    return Attribution(signed.relu() if p.relu else signed, warnings=warnings)


def _said_of(layer: Layer) -> list[str]:
    """What must be known of a layer to read its map."""
    assert layer.grid is not None
    said = []
    if layer.calls > 1:
        which = "its last output" if layer.call == layer.runs - 1 else f"its output of run {layer.call + 1}"
        said.append(f"layer {layer.name} runs {layer.calls} times in one pass: {which} is explained")
    if layer.grid.single:
        said.append(f"layer {layer.name} has one cell, so its map is the same everywhere")
    return said
