"""CAM: the last feature map, weighted by a class's row of the linear layer that follows global average pooling.

M_c = sum_k w_ck A_k, without the bias (Zhou et al. 2015, arXiv:1512.04150, equation 2). A (K, h, w) is the tensor that the
pooling averages; in DenseNet that is the output of a functional ReLU. One forward pass.

Extension beyond the paper: a 1x1 convolution before the pooling counts as the linear layer. In SqueezeNet, where a ReLU
stands between that convolution and the pooling, A is the convolution's input, as in the authors' program zhoubolei/CAM.
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
    features, weight = head
    columns = req.targets.resolve(logits).columns(logits)
    assert columns is not None, "a linear layer makes class columns"
    weights_btk = weight[columns].to(torch.promote_types(weight.dtype, torch.float32))
    return Attribution(torch.einsum("btk,bkhw->bthw", weights_btk, features.to(weights_btk)))
