"""Grad-CAM: equations 1 and 2 as loops, its identity with CAM, in-place neighbours, and what it does not compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nets import DenseLike, GapHead, Probed, SqueezeLike, VGGLike, images, seeded
from oracles import answers, ask, maps_of, model_of, same
from visx import VisxError

X = images(2)


def slow(features: Tensor, tail, targets: tuple[int, ...], relu: bool = True) -> Tensor:  # type: ignore[no-untyped-def]
    """One image, one class and one channel at a time; `tail` maps the features (1, K, h, w) to logits."""
    batch, channels, height, width = features.shape
    maps = torch.zeros(batch, len(targets), height, width, dtype=features.dtype)
    for b in range(batch):
        for t, target in enumerate(targets):
            a = features[b : b + 1].detach().clone().requires_grad_()
            (g,) = torch.autograd.grad(tail(a.clone())[0, target], a)
            for k in range(channels):
                alpha = sum(g[0, k, i, j] for i in range(height) for j in range(width)) / (height * width)
                maps[b, t] += alpha * features[b, k]
    return maps.clamp(min=0) if relu else maps


@pytest.mark.parametrize("relu", [True, False])
def test_equations_at_the_last_layer(relu: bool) -> None:
    net = seeded(GapHead)
    features = net.features(X).detach()
    expected = slow(features, lambda a: net.fc(net.pool(a).flatten(1)), (0, 3), relu)
    assert same(ask("gradcam", net, X, (0, 3), layer="features", relu=relu).map, expected)


@pytest.mark.parametrize("cut", [0, 2, 3, 4])
def test_equations_at_an_inner_layer_with_in_place_relus(cut: int) -> None:
    """Layer 3 is a convolution followed by an in-place ReLU: map and gradient are of the convolution's output."""
    net = seeded(lambda: VGGLike(12))
    features = X
    for index in range(cut + 1):
        features = net.features[index](features.clone())

    def tail(a: Tensor) -> Tensor:
        for layer in net.features[cut + 1 :]:
            a = layer(a)
        return net.fc(a.flatten(1))

    found = ask("gradcam", net, X, (1, 2), layer=f"features.{cut}", relu=False)
    assert same(found.map, slow(features.detach(), tail, (1, 2), relu=False))


def test_densenet_s_ending() -> None:
    """`features` is followed by a functional in-place ReLU: both map and gradient are of the tensor before it."""
    net = seeded(DenseLike)
    expected = slow(net.features(X).detach(), lambda a: net.classifier(a.relu().mean((2, 3))), (0, 4), relu=False)
    assert same(ask("gradcam", net, X, (0, 4), layer="features", relu=False).map, expected)


@pytest.mark.parametrize("build", [GapHead, SqueezeLike])
def test_is_cam_divided_by_the_area(build) -> None:  # type: ignore[no-untyped-def]
    """Before the ReLU, where GAP and a linear head follow, alpha_k = w_k / (h w). SqueezeNet's ReLU behind the class
    maps keeps of this the positions where the map is positive, so there only those images where all are."""
    net = seeded(build)
    if build is SqueezeLike:
        with torch.no_grad():
            net.conv.bias += 100  # every class map positive: the ReLU passes all
    found = ask("gradcam", net, X, (0, 3), layer="features", relu=False).map
    assert same(found, ask("cam", net, X, (0, 3)).map / (found.shape[-1] * found.shape[-2]))


def test_captum_agrees() -> None:
    attr = pytest.importorskip("captum.attr")
    net = seeded(GapHead)
    theirs = attr.LayerGradCam(net, net.features).attribute(X, 3)
    assert same(ask("gradcam", net, X, (3,), layer="features", relu=False).map, theirs)
    assert same(ask("gradcam", net, X, (3,), layer="features").map, theirs.relu())


def test_answer_is_upsampled_bilinearly_and_keeps_the_coarse_map() -> None:
    (image,) = answers(model_of(seeded(GapHead)), "gradcam", X[:1], "top1", relu=False)
    answer = image[0]  # type: ignore[index]
    coarse = torch.from_numpy(answer.native)[None, None]
    assert answer.native.shape == (6, 6)
    expected = nn.functional.interpolate(coarse, (12, 12), mode="bilinear", align_corners=False)
    assert same(answer.map, expected[0, 0], 1e-6)
    by_hand = 0.75 * (0.75 * coarse[0, 0, 0, 0] + 0.25 * coarse[0, 0, 0, 1]) + 0.25 * (
        0.75 * coarse[0, 0, 1, 0] + 0.25 * coarse[0, 0, 1, 1]
    )
    assert float(answer.map[1, 1]) == pytest.approx(float(by_hand), rel=1e-5)


def test_negative_everywhere_is_zero_with_a_warning() -> None:
    net = seeded(GapHead)
    with torch.no_grad():
        net.fc.weight[2] = -net.fc.weight[2].abs()
    (image,) = answers(model_of(net), "gradcam", X[:1], "2")
    answer = image[0]  # type: ignore[index]
    assert not answer.map.any() and "relu=false" in answer.warnings[0]
    assert maps_of(answers(model_of(net), "gradcam", X[:1], "2", relu="false")).max() < 0


@pytest.mark.parametrize("targets", [1, 3])
def test_nothing_before_the_layer_is_differentiated(targets: int) -> None:
    net = seeded(Probed)
    model = model_of(net)
    _ = model.anatomy
    for probe in (net.entrance, net.before, net.behind):
        probe.forwards.clear()
    answers(model, "gradcam", X, f"top{targets}", layer="layer")
    assert net.entrance.forwards == net.before.forwards == net.behind.forwards == [2]
    assert net.entrance.backwards == net.before.backwards == []
    assert net.behind.backwards == [2] * targets


def test_no_parameter_takes_a_gradient() -> None:
    net = seeded(Probed)
    weights = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):  # type: ignore[no-untyped-def]
            return w.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            weights.append(grad)
            return grad

    linear = net.fc.forward
    net.fc.forward = lambda x: nn.functional.linear(x, Watch.apply(net.fc.weight), net.fc.bias)
    ask("gradcam", net, X, layer="layer")
    assert not weights, "the weight's gradient was computed"
    net.fc.forward = linear
    assert all(p.grad is None for p in net.parameters())


def test_reused_layer_explains_its_last_output_and_says_so() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(self.conv(x).tanh()).mean((2, 3)))

    net = seeded(Twice)
    found = ask("gradcam", net, X, (1,), layer="conv", relu=False)
    second = net.conv(net.conv(X).tanh()).detach()
    assert same(found.map, slow(second, lambda a: net.fc(a.mean((2, 3))), (1,), relu=False))
    assert "2 times" in found.warned(0, 0)[0]


@pytest.mark.parametrize(
    ("layer", "code", "says"),
    [("fc", 4, "not a feature map"), ("featurs", 2, "features"), ("drop", 4, "not a feature map")],
)
def test_layers_that_do_not_fit(layer: str, code: int, says: str) -> None:
    with pytest.raises(VisxError) as caught:
        answers(model_of(seeded(GapHead)), "gradcam", X, layer=layer)
    assert caught.value.code == code and says in str(caught.value)


def test_layer_that_does_not_run() -> None:
    net = seeded(GapHead)
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(VisxError, match="not used in the forward pass") as caught:
        answers(model_of(net), "gradcam", X, layer="spare")
    assert caught.value.code == 4
