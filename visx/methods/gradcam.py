"""Grad-CAM: the feature maps of a layer, weighted by the spatial mean of their gradients, summed, then ReLU.

alpha_k = mean_ij dS/dA_kij, M = ReLU(sum_k alpha_k A_k) (Selvaraju et al. 2016, arXiv:1610.02391, equations 1 and 2).
A (K, h, w) is the layer's output. If the next operation changes that output in place, A is the value before the change.
A map that is negative everywhere becomes zero, with a warning.

Extension beyond the paper: `relu=false` leaves the ReLU out and gives the signed map.
"""

from __future__ import annotations

from visx.methods.common.layers import layer_warnings
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params


class GradCAMParams(Params):
    relu: bool = Field(True, description="keep positive evidence alone; false gives the signed map")


@method(
    "gradcam",
    family="cam",
    title="Grad-CAM",
    source="arXiv:1610.02391",
    needs={"grad", "layer"},
    single_pass=True,
    params=GradCAMParams,
)
def gradcam(req: Request, p: GradCAMParams) -> Attribution:
    import torch

    result = req.layer_gradients()
    alpha_btk = result.grads.mean((-2, -1))
    signed = torch.bmm(alpha_btk, result.activation.flatten(2)).unflatten(2, result.activation.shape[2:])
    batch, count = signed.shape[:2]
    warnings: list[list[list[str]]] = [[[] for _ in range(count)] for _ in range(batch)]
    if p.relu:
        only_negative = ((signed.amax((-2, -1)) <= 0) & (signed.amin((-2, -1)) < 0)).tolist()
        for b in range(batch):
            for t in range(count):
                if only_negative[b][t]:
                    warnings[b][t].append(
                        "Grad-CAM is negative everywhere, so its ReLU leaves zeros: see -p relu=false"
                    )
    for row in warnings:
        for cell in row:
            cell += layer_warnings(result.layer)
    return Attribution(signed.relu() if p.relu else signed, warnings=warnings)
