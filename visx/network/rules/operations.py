"""Operations by what autograd calls their backward passes, sorted by what a relevance rule has to know of them.

A node's name is its operation's with "Backward" and a counter behind it ("MulBackward0"); `operation` cuts both off. A
power below 1 is a "Root".
"""

from __future__ import annotations

from typing import Any


def operation(node: Any) -> str:
    """The operation whose backward pass a node is ("Mul"); of somebody's own autograd function, its class's full name."""
    own: Any = getattr(node, "_forward_cls", None)
    if own is not None:
        return f"{own.__module__}.{own.__name__}"
    name: str = node.name().rpartition("::")[2]
    if name == "PowBackward0" and node._saved_exponent < 1:
        return "Root"
    if name in ("PowBackward1", "PowBackward2"):
        return "power of a tensor"
    if name == "DivBackward0" and node.next_functions[0][0] is None:
        return "Reciprocal"
    return name.rpartition("Backward")[0] or name


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values are moved, weighted by constants, and added up
LINEAR = _named(
    "View UnsafeView ViewAs ReshapeAlias Squeeze Unsqueeze Slice Select Index IndexSelect Gather Permute Transpose T Alias "
    "Clone Expand ToCopy Copy Cat Stack Unbind Split SplitWithSizes AsStrided Unflatten Unfold Im2Col Col2Im Roll Flip Rot90 "
    "Repeat RepeatInterleave ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D Diagonal Tril "
    "Triu MaskedFill MaskedSelect MaskedScatter Scatter ScatterAdd IndexPut IndexAdd IndexCopy SliceScatter SelectScatter "
    "Add Sub Rsub Neg Sum Mean Cumsum AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D NativeDropout "
    "UpsampleNearest1D UpsampleNearest2D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleBilinear2DAa "
    "UpsampleBicubic2DAa UpsampleNearestExact2D PixelShuffle PixelUnshuffle ChannelShuffle NativeChannelShuffle FftR2C FftC2R "
    "FftC2C ViewAsReal ViewAsComplex Real Imag Complex ToMkldnn MkldnnReshape torch.nn.modules._functions.BackwardHookFunction"
    
)  # fmt: skip
VIEWS = _named(
    "View UnsafeView ViewAs ReshapeAlias Squeeze Unsqueeze Slice Select Index IndexSelect Permute Transpose Alias Clone Expand "
    "ToCopy Cat Unbind Split SplitWithSizes AsStrided Unflatten Roll ConstantPadNd NativeDropout"
)
# Linear on each side of a few borders, where one piece or one value is picked
PIECEWISE = _named(
    "Relu Threshold Hardtanh LeakyRelu PreluKernel RreluWithNoise Clamp ClampMin ClampMax Abs Where Maximum Minimum Fmax Fmin "
    "MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D Max Min Amax Amin Sort Topk Hardshrink "
    "Softshrink"
)
# Which two inputs of a node are multiplied with each other
PRODUCTS = {
    "Mul": (0, 1), "Bmm": (0, 1), "Mm": (0, 1), "Mv": (0, 1), "Dot": (0, 1), "Linear": (0, 1), "Convolution": (0, 1),
    "MkldnnConvolution": (0, 1), "CudnnConvolution": (0, 1), "ConvDepthwise2D": (0, 1), "ThnnConv2D": (0, 1),
    "Baddbmm": (1, 2), "Addmm": (1, 2), "Addmv": (1, 2), "Addcmul": (1, 2), "Addbmm": (1, 2),
}  # fmt: skip
CONVOLUTIONS = frozenset({"Convolution", "MkldnnConvolution", "CudnnConvolution", "ConvDepthwise2D", "ThnnConv2D"})
MATRIX_PRODUCTS = frozenset(PRODUCTS) - CONVOLUTIONS - {"Mul", "Addcmul"}
# Attention in one operation; its first inputs are query, key and value
FUSED_ATTENTION = _named(
    "ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention ScaledDotProductEfficientAttention "
    "ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable"
)
SOFTMAX = frozenset({"Softmax", "SafeSoftmax"})
SIGMOIDS = frozenset({"Sigmoid", "Hardsigmoid"})
SQUASHING = SOFTMAX | SIGMOIDS | {"LogSoftmax"}
SCALES = _named("Rsqrt Sqrt Root Reciprocal LinalgVectorNorm Norm Std StdMean Var VarMean")  # of a normalisation
BATCH_NORMS = frozenset({"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"})
NORMS = BATCH_NORMS | {"NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"}
INPUT = "AccumulateGrad"  # a tensor that wants a gradient: the pictures, or a parameter
