"""Against slow replicas of the original programs, same network, same weights, same input: Pearson r >= 0.9999.

Raw maps are equal up to a positive factor where the original min-maxes. Five torchvision networks with seeded weights.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nets import images
from oracles import ask, pearson
from replicas import ARCHITECTURES, DECONV, GUIDED, Architecture, class_activation_map, grad_cam, input_gradient

R, SIZE, TARGETS = 0.9999, 96, (3, 500)
X = images(2, SIZE, seed=1, dtype=torch.float32)
SLOW = ("vgg11_bn", "densenet121", "googlenet")


def _networks() -> list[object]:
    return [pytest.param(a, id=a.name, marks=[pytest.mark.slow] if a.name in SLOW else []) for a in ARCHITECTURES]


@pytest.fixture(scope="module", params=_networks())
def case(request: pytest.FixtureRequest) -> tuple[Architecture, nn.Module]:
    return request.param, request.param.build()


@pytest.mark.parametrize(("name", "rule"), [("backprop", None), ("deconvnet", DECONV), ("guided_backprop", GUIDED)])
def test_input_gradients(
    case: tuple[Architecture, nn.Module], name: str, rule: type[torch.autograd.Function] | None
) -> None:
    _, net = case
    found = ask(name, net, X, TARGETS)
    assert found.channels is not None
    for b in range(2):
        for t, target in enumerate(TARGETS):
            expected = input_gradient(net, X[b : b + 1], target, rule)[0]
            assert pearson(found.channels[b, t], expected) >= R
            assert pearson(found.map[b, t], expected.abs().amax(0)) >= R
            assert float(found.map[b, t].sum()) == pytest.approx(float(expected.abs().amax(0).sum()), rel=1e-3)


@pytest.mark.parametrize("which", [0, 1])
def test_gradcam(case: tuple[Architecture, nn.Module], which: int) -> None:
    architecture, net = case
    layer, cut = list(architecture.layers.items())[which]
    found = ask("gradcam", net, X, TARGETS, layer=layer)
    compared = 0
    for b in range(2):
        for t, target in enumerate(TARGETS):
            raw, scaled = grad_cam(*cut(net), X[b : b + 1], target)
            if not raw.any():
                assert not found.map[b, t].any()
                continue
            compared += 1
            assert pearson(found.map[b, t], raw) >= R
            assert float(found.map[b, t].max()) == pytest.approx(float(raw.max()), rel=1e-3)
            large = nn.functional.interpolate(found.map[b, t][None, None], (SIZE, SIZE), mode="bilinear")
            assert pearson(large, scaled) >= R
    assert compared >= 1


def test_guided_gradcam(case: tuple[Architecture, nn.Module]) -> None:
    """`rescale=minmax` is the program's demo; without it, its product with the raw map."""
    architecture, net = case
    layer, cut = list(architecture.layers.items())[1]
    plain, scaled = (ask("guided_gradcam", net, X, TARGETS, layer=layer, rescale=r) for r in ("none", "minmax"))
    compared = 0
    for b in range(2):
        for t, target in enumerate(TARGETS):
            raw, regions = grad_cam(*cut(net), X[b : b + 1], target)
            if not raw.any():
                continue
            compared += 1
            gradient = input_gradient(net, X[b : b + 1], target, GUIDED)[0]
            large = nn.functional.interpolate(raw[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0]
            assert pearson(scaled.channels[b, t], gradient * regions) >= R
            assert float(scaled.channels[b, t].abs().sum()) == pytest.approx(
                float((gradient * regions).abs().sum()), rel=1e-3
            )
            assert pearson(plain.channels[b, t], gradient * large) >= R
    assert compared >= 1


@torch.no_grad()
def test_cam(case: tuple[Architecture, nn.Module]) -> None:
    architecture, net = case
    if architecture.cam is None:
        pytest.skip("VGG has no CAM: refused, see test_cam")
    found = ask("cam", net, X, TARGETS)
    for b in range(2):
        maps, weight = architecture.cam(net, X[b : b + 1])
        for t, target in enumerate(TARGETS):
            expected = class_activation_map(maps, weight, target)
            assert pearson(found.map[b, t], expected) >= R
            assert float(found.map[b, t].abs().max()) == pytest.approx(float(expected.abs().max()), rel=1e-3)


def test_replica_s_cut_is_the_network(case: tuple[Architecture, nn.Module]) -> None:
    """The oracle itself: before and behind make the whole, and the rules are no plain gradient."""
    architecture, net = case
    with torch.no_grad():
        for cut in architecture.layers.values():
            before, behind = cut(net)
            assert torch.allclose(behind(before(X)), net(X), rtol=1e-4, atol=1e-6)
    plain, deconvnet, guided = (input_gradient(net, X[:1], 3, rule) for rule in (None, DECONV, GUIDED))
    assert pearson(plain, guided) < 0.9 and pearson(plain, deconvnet) < 0.9 and pearson(deconvnet, guided) < 0.999
