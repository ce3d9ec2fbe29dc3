"""EfficientNet-Lite0, the built-in default network: small, usable offline, with trained ImageNet weights.

Tan & Le 2019 (arXiv:1905.11946) in the variant for mobile devices of TensorFlow's TPU repository: without
squeeze-and-excitation, with ReLU6 in place of swish, stem and head not scaled. It is implemented here because importing timm
takes longer than explaining a picture. Parameters have the names and the order of timm's `tf_efficientnet_lite0`, so that its
checkpoints load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# One row a stage: expansion, output channels, number of blocks, stride of the first block, kernel size
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the output has ceil(size / stride) pixels a side.

    An odd pixel of padding is at the right and bottom.
    """

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        over_h, over_w = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (over_w // 2, over_w - over_w // 2, over_h // 2, over_h - over_h // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class BatchNormReLU6(nn.BatchNorm2d):
    """Batch normalisation with TensorFlow's epsilon, then ReLU6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x), inplace=True)


class MBConv(nn.Module):
    """Inverted bottleneck: expansion (not in the first stage), depthwise convolution, projection.

    The input is added to the output where their shapes are equal.
    """

    def __init__(self, cin: int, cout: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        mid = cin * expansion
        if expansion > 1:
            self.conv_pw = nn.Conv2d(cin, mid, 1, bias=False)
            self.bn1 = BatchNormReLU6(mid)
        self.conv_dw = SameConv2d(mid, mid, kernel, stride, groups=mid, bias=False)
        last = nn.Conv2d(mid, cout, 1, bias=False)
        if expansion > 1:
            self.bn2: nn.BatchNorm2d = BatchNormReLU6(mid)
            self.conv_pwl, self.bn3 = last, nn.BatchNorm2d(cout, eps=1e-3)
        else:
            self.bn1 = BatchNormReLU6(mid)
            self.conv_pw = last
            self.bn2 = nn.BatchNorm2d(cout, eps=1e-3)
        self.skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network: images (N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn1 = BatchNormReLU6(32)
        stages, cin = [], 32
        for expansion, cout, count, stride, kernel in STAGES:
            blocks = [
                MBConv(cin if i == 0 else cout, cout, expansion, kernel, stride if i == 0 else 1) for i in range(count)
            ]
            stages.append(nn.Sequential(*blocks))
            cin = cout
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(cin, 1280, 1, bias=False)
        self.bn2 = BatchNormReLU6(1280)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv_stem(x)))
        x = self.bn2(self.conv_head(x))
        return self.classifier(torch.flatten(self.global_pool(x), 1))
