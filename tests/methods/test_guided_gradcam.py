"""Guided Grad-CAM: the product of two answers written apart, and kazuto1011's min-max variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nets import GapHead, Probed, images, seeded, two_convs
from oracles import answers, ask, backward_by_hand, guided, model_of, same

X = images(2)
TARGETS = (0, 3)


def coarse(net: torch.nn.Module, target: int) -> torch.Tensor:
    """Grad-CAM of the last ReLU's input, by its equation: the mean gradient of conv2's output is w over the positive."""
    with torch.no_grad():
        z2 = net.conv2(net.first(net.conv1(X)))
        alpha = net.fc.weight[target] * (z2 > 0).double().mean((2, 3)) / (z2.shape[2] * z2.shape[3])
        return torch.einsum("bk,bkhw->bhw", alpha, z2).relu()


@pytest.mark.parametrize("rescale", ["none", "minmax"])
def test_product_channel_by_channel(rescale: str) -> None:
    net = two_convs()
    found = ask("guided_gradcam", net, X, TARGETS, layer="conv2", rescale=rescale)
    for t, target in enumerate(TARGETS):
        cam = coarse(net, target)
        if rescale == "minmax":
            low, high = cam.flatten(1).min(1).values, cam.flatten(1).max(1).values
            cam = (cam - low[:, None, None]) / (high - low)[:, None, None]
        product = cam[:, None] * backward_by_hand(net, X, target, guided)
        assert same(found.channels[:, t], product)
        assert same(found.map[:, t], product.abs().amax(1))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rescale", ["none", "minmax"])
def test_coarse_map_is_upsampled_before_it_is_scaled_and_multiplied(rescale: str, positive: bool) -> None:
    net = seeded(GapHead)
    if positive:  # everywhere, so that the smallest value is not 0 anyway
        with torch.no_grad():
            net.features[4].bias += 3
            net.fc.weight.abs_()
        assert ask("gradcam", net, X, TARGETS, layer="features").map.min() > 0
    cam = F.interpolate(
        ask("gradcam", net, X, TARGETS, layer="features").map, (12, 12), mode="bilinear", align_corners=False
    )
    if rescale == "minmax":
        low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
        cam = (cam - low) / (high - low)
    guided_channels = ask("guided_backprop", net, X, TARGETS).channels
    found = ask("guided_gradcam", net, X, TARGETS, layer="features", rescale=rescale).channels
    assert same(found, cam[:, :, None] * guided_channels)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_captum_agrees() -> None:
    """captum upsamples nearest unless told otherwise."""
    attr = pytest.importorskip("captum.attr")
    net = two_convs()
    theirs = attr.GuidedGradCam(net, net.conv2).attribute(X.clone().requires_grad_(), 3, interpolate_mode="bilinear")
    assert same(ask("guided_gradcam", two_convs(), X, (3,), layer="conv2").channels[:, 0], theirs)


@pytest.mark.parametrize("targets", [1, 3])
def test_two_passes_and_two_gradients_a_target(targets: int) -> None:
    net = seeded(Probed)
    model = model_of(net)
    _ = model.anatomy
    net.entrance.forwards.clear()
    answers(model, "guided_gradcam", X, f"top{targets}", layer="layer")
    assert net.entrance.forwards == [2, 2] and net.entrance.backwards == [2] * targets
    assert net.behind.backwards == [2] * (2 * targets)
