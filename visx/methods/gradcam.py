"""Grad-CAM: the feature maps of a layer, weighted by the spatial mean of their gradients, summed, then ReLU.

alpha_k = mean_ij dS/dA_kij, M = ReLU(sum_k alpha_k A_k) (Selvaraju et al. 2016, arXiv:1610.02391, equations 1 and 2).
A (K, h, w) is the layer's output. If the next operation changes that output in place, A is the value before the change.
A map that is negative everywhere becomes zero, with a warning.

Extensions beyond the paper:
- `relu=false` leaves the ReLU out and gives the signed map.
- Several layers (`-l A+B`) give one map: the mean of their maps, each divided by its largest absolute value and upsampled
  bilinearly to the largest of their grids. One forward and one backward pass give the gradients of all. (The package grad-cam
  takes the mean of maps scaled from their minimum to their maximum, torch-cam the largest of maps scaled so at each pixel.)
"""

from __future__ import annotations

from visx.methods.common.layers import fused, layer_warnings
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
    fuses=True,
    params=GradCAMParams,
)
def gradcam(req: Request, p: GradCAMParams) -> Attribution:
    import torch

    results = req.layer_gradients()
    maps: list[torch.Tensor] = []
    warnings: list[list[list[str]]] = [[[] for _ in row] for row in results[0].scores]
    for result in results:
        alpha_btk = result.grads.mean((-2, -1))
        signed = torch.bmm(alpha_btk, result.activation.flatten(2)).unflatten(2, result.activation.shape[2:])
        maps.append(signed.relu() if p.relu else signed)
        of = f" of layer {result.layer.name}" if len(results) > 1 else ""
        only_negative = ((signed.amax((-2, -1)) <= 0) & (signed.amin((-2, -1)) < 0)).tolist()
        for row, negative in zip(warnings, only_negative, strict=True):
            for cell, nothing_left in zip(row, negative, strict=True):
                if p.relu and nothing_left:
                    cell.append(f"Grad-CAM{of} is negative everywhere, so its ReLU leaves zeros: see -p relu=false")
                cell += layer_warnings(result.layer)
    return Attribution(fused(maps), warnings=warnings)
