"""CAM: the last feature map, weighted by a class's row of the linear layer that follows global average pooling.

M_c = sum_k w_ck A_k, without the bias (Zhou et al. 2015, arXiv:1512.04150, equation 2). A (K, h, w) is the tensor that the
pooling averages; in DenseNet that is the output of a functional ReLU. One forward pass. The mean of M_c over its cells plus
the class's bias is the logit.

Extensions beyond the paper:
- A 1x1 convolution before the pooling counts as the linear layer. In SqueezeNet, where a ReLU stands between that convolution
  and the pooling, A is the convolution's input, as in the authors' program zhoubolei/CAM; there the map is no part of the logit.
- Tokens that are averaged (MLP-Mixer, Swin, a ViT without class token) are a feature map. Where they are normalised before the
  mean, A is the normalised tokens, and M_c as above.
- A normalisation between mean and linear layer: of batch normalisation w_ck is multiplied with gamma_k / sqrt(var_k + eps). A
  layer normalisation (ConvNeXt, a ViT with fc_norm) of the mean m divides by sigma, the standard deviation of m. That is one number
  an image, the same for all cells and classes, and with it as it is the logit is linear in A:
  M_c = sum_k (v_ck - mean_j v_cj) A_k / sigma with v_ck = w_ck gamma_k. The mean of M_c plus sum_k w_ck beta_k plus the bias is the
  logit.

There is no such form where a class token is read: what it gathers from the patches goes through the last block's
perceptron, or (without one) its weights depend on all patches. Nor is there where more than a normalisation stands
between mean and linear layer (MambaOut, MaxViT). Both are refused.
"""

from __future__ import annotations

from visx.errors import unsupported
from visx.methods.contract import Attribution, Request, method
from visx.params import Params


@method(
    "cam",
    family="cam",
    title="Class activation map",
    source="arXiv:1512.04150",
    needs={"grad", "gap_head"},
    signed=True,
    single_pass=True,
)
def cam(req: Request, p: Params) -> Attribution:
    import torch

    from visx.network.cam import features_and_weight

    logits, head = features_and_weight(req.network, req.x)
    if head is None:
        raise unsupported(
            "cam needs global average pooling followed by one linear layer (or a 1x1 convolution before it)",
            "use gradcam: it fits any network with feature maps",
        )
    columns = req.targets.resolve(logits).columns(logits)
    assert columns is not None, "a linear layer makes class columns"
    weights_btk = head.weight[columns].to(torch.promote_types(head.weight.dtype, torch.float32))
    if head.scale is not None:
        weights_btk = weights_btk * head.scale[:, None, None]
    return Attribution(torch.einsum("btk,bkhw->bthw", weights_btk, head.features.to(weights_btk)))
