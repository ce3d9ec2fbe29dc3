"""CAM: the weighted sum written as loops, the heads that count, and the networks that are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES, DenseLike, GapHead, Probed, SqueezeLike, TwoConvs, VGGLike, images, seeded, two_convs
from oracles import answers, ask, model_of, same
from visx import VisxError

X = images(2)


def weighted_sum(features: Tensor, weight: Tensor, targets: tuple[int, ...]) -> Tensor:
    """arXiv:1512.04150, equation 2, loop by loop."""
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, len(targets), height, width, dtype=features.dtype)
    for b in range(batch):
        for t, target in enumerate(targets):
            for k in range(channels):
                out[b, t] += weight[target, k] * features[b, k]
    return out


@torch.no_grad()
def test_pooled_linear_head() -> None:
    net = seeded(GapHead)
    assert same(ask("cam", net, X, (0, 3)).map, weighted_sum(net.features(X), net.fc.weight, (0, 3)))


@torch.no_grad()
def test_map_is_of_the_tensor_that_is_pooled() -> None:
    """DenseNet pools what its functional in-place ReLU left, not what `features` returned."""
    net = seeded(DenseLike)
    assert same(ask("cam", net, X, (1, 2)).map, weighted_sum(net.features(X).relu(), net.classifier.weight, (1, 2)))


@torch.no_grad()
def test_convolution_to_class_maps_counts_as_head() -> None:
    """SqueezeNet: A is the 1x1 convolution's input, its bias and the ReLU behind it left out."""
    net = seeded(SqueezeLike)
    assert same(ask("cam", net, X, (1, 2)).map, weighted_sum(net.features(X), net.conv.weight[:, :, 0, 0], (1, 2)))


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["nn.ReLU", "F.relu in place", "Tensor.relu_", "nn.ReLU6 in place"])
def test_mean_over_space_counts_as_pooling(spelling: str) -> None:
    net = two_convs(spelling)
    features = net.second(net.conv2(net.first(net.conv1(X))))
    assert same(ask("cam", net, X, (4,)).map, weighted_sum(features, net.fc.weight, (4,)))


@torch.no_grad()
def test_negative_features_count() -> None:
    net = seeded(lambda: TwoConvs(nn.ReLU(), nn.Tanh()))
    features = net.conv2(net.conv1(X).relu()).tanh()
    assert same(ask("cam", net, X, (4,)).map, weighted_sum(features, net.fc.weight, (4,)))


class _Head(nn.Module):
    """A convolution, then whatever `end` does."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.conv, self.fc, self.end = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES), end
        self.wide = nn.Linear(8 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).relu()
        if self.end == "avg_pool2d of the whole map":
            return self.fc(F.avg_pool2d(z, z.shape[-2:]).flatten(1))
        if self.end == "AdaptiveAvgPool2d and view":
            return self.fc(F.adaptive_avg_pool2d(z, 1).view(len(z), -1))
        if self.end == "squeeze":
            return self.fc(F.adaptive_avg_pool2d(z, 1).squeeze(3).squeeze(2))
        if self.end == "mean twice":
            return self.fc(z.mean(3).mean(2))
        if self.end == "max":
            return self.fc(F.adaptive_max_pool2d(z, 1).flatten(1))
        if self.end == "two by two":
            return self.wide(F.adaptive_avg_pool2d(z, 2).flatten(1))
        return self.fc(F.adaptive_avg_pool2d(z, 1).flatten(1).tanh())  # "tanh between"


@torch.no_grad()
@pytest.mark.parametrize("end", ["avg_pool2d of the whole map", "AdaptiveAvgPool2d and view", "squeeze", "mean twice"])
def test_other_spellings_of_the_head(end: str) -> None:
    net = seeded(lambda: _Head(end))
    assert same(ask("cam", net, X, (1,)).map, weighted_sum(net.conv(X).relu(), net.fc.weight, (1,)))


@pytest.mark.parametrize("end", ["max", "two by two", "tanh between"])
def test_heads_that_are_no_global_average_are_refused(end: str) -> None:
    with pytest.raises(VisxError) as caught:
        answers(model_of(seeded(lambda: _Head(end))), "cam", X)
    assert caught.value.code == 4


def test_vgg_is_refused_and_pointed_to_gradcam() -> None:
    with pytest.raises(VisxError, match="global average pooling") as caught:
        answers(model_of(seeded(lambda: VGGLike(12))), "cam", X)
    assert caught.value.code == 4 and "gradcam" in caught.value.hint


def test_one_forward_pass_and_no_backward() -> None:
    net = seeded(Probed)
    model = model_of(net)
    _ = model.anatomy
    net.entrance.forwards.clear()
    answers(model, "cam", X, "top3")
    assert net.entrance.forwards == [2] and net.entrance.backwards == []
