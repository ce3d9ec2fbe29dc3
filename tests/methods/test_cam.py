"""CAM: the weighted sum written as loops, the heads that count, and the networks that are refused."""

from __future__ import annotations

from functools import partial

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


class _Normed(nn.Module):
    """A feature map, its mean normalised in one of several spellings, and a linear layer."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv, self.fc, self.kind = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES), norm
        self.norm = (
            nn.BatchNorm1d(8) if norm == "batch" else nn.LayerNorm(8, elementwise_affine=norm != "plain", eps=1e-3)
        )
        for value in (*self.norm.parameters(), *self.norm.buffers()):
            if value.is_floating_point():
                nn.init.uniform_(value, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).tanh()
        if self.kind == "channels first":  # ConvNeXt
            pooled = F.adaptive_avg_pool2d(z, 1).permute(0, 2, 3, 1)
            return self.fc(self.norm(pooled).permute(0, 3, 1, 2).flatten(1))
        if self.kind == "tokens":
            return self.fc(self.norm(z.flatten(2).transpose(1, 2).mean(1)))
        if self.kind == "before":
            return self.fc(self.norm(z.permute(0, 2, 3, 1)).mean((1, 2)))
        return self.fc(self.norm(z.mean((2, 3))))

    def constant(self, target: int) -> float:
        """What of a logit is no part of the map."""
        beta = self.norm.bias if self.norm.bias is not None else torch.zeros(8).double()
        if self.kind == "batch":
            beta = beta - self.norm.running_mean * self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        return float(self.fc.bias[target] + (0 if self.kind == "before" else self.fc.weight[target] @ beta))


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "plain", "channels first", "tokens", "batch", "before"])
def test_normalised_averages_are_conserved(norm: str) -> None:
    """The mean of the map and what does not depend on the picture are the logit; and cell by cell it is what the cell adds."""
    net = seeded(lambda: _Normed(norm))
    maps, logits = ask("cam", net, X, (0, 3)).map, net(X)
    for t, target in enumerate((0, 3)):
        assert same(maps[:, t].mean((1, 2)) + net.constant(target), logits[:, target])
    features = net.conv(X).tanh()
    if norm == "before":
        features = net.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    cells = maps.shape[-1] * maps.shape[-2]
    alone = features[:, :, 2, 4] / cells  # what one cell adds to the mean, normalised as the mean is
    if norm == "batch":
        alone = alone * net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
    elif norm != "before":
        deviation = (features.mean((2, 3)).var(1, unbiased=False, keepdim=True) + net.norm.eps).sqrt()
        alone = (alone - alone.mean(1, keepdim=True)) / deviation * (1 if norm == "plain" else net.norm.weight)
    assert same(maps[:, 1, 2, 4] / cells, alone @ net.fc.weight[3])


def _timm(name: str, **options: object) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    build = getattr(timm.models, name, None) if name[0].isupper() else partial(timm.create_model, name)
    net = seeded(lambda: build(num_classes=CLASSES, **options))  # type: ignore[misc]
    for n, parameter in enumerate(net.parameters()):  # some heads, scales and biases are zero at first
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        parameter.data += 0.02 * noise
    return net


_SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
        ("vit_tiny_patch16_224", {**_SMALL_VIT, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {**_SMALL_VIT, "global_pool": "avg", "class_token": False, "fc_norm": False}),
        ("beit_base_patch16_224", {**_SMALL_VIT}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}),
        ("MlpMixer", {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 2}),
    ],
)  # fmt: skip
def test_conserved_in_timm_s_networks(name: str, options: dict[str, object]) -> None:
    """Maps of two pictures: the mean less the logit is the same for both."""
    net, x = _timm(name, **options), images(2, 32)
    maps, logits = ask("cam", net, x, (1,)).map, net(x)
    rest = logits[:, 1] - maps[:, 0].mean((1, 2))
    assert float((rest[0] - rest[1]).abs()) < 1e-9 * float(logits.abs().max())
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3 and float(maps.std()) > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("vit_tiny_patch16_224", _SMALL_VIT, "reads a class token"),
        ("deit_tiny_distilled_patch16_224", _SMALL_VIT, "reads a class token"),
        ("mambaout_femto", {"depths": (1, 1), "dims": (8, 16)}, "global average pooling"),
    ],
)
def test_other_heads_of_transformers_are_refused_with_the_reason(
    name: str, options: dict[str, object], why: str
) -> None:
    with pytest.raises(VisxError, match=why) as caught:
        answers(model_of(_timm(name, **options), 32), "cam", images(1, 32))
    assert caught.value.code == 4
