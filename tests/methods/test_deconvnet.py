"""The deconvnet of a unit against an explicit one: transposed convolutions, unpooling by switches, ReLU between.

(The deconvnet of a class is tested with guided backpropagation, whose twin it is.)
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nets import GapHead, VGGLike, images, seeded
from oracles import answers, ask, model_of, same
from visx import VisxError
from visx.network.network import Network

X = images(2, 16)
UNITS = ["max", "3", "2,1,3"]


def explicit(features: nn.Sequential, cut: int, x: Tensor, unit: str) -> tuple[Tensor, tuple[int, int, int], float]:
    """One image (1, 3, H, W) up to layer `cut`, one unit kept, and back: arXiv:1311.2901, section 2.1."""
    switches: dict[int, tuple[Tensor, torch.Size]] = {}
    with torch.no_grad():
        a = x
        for index in range(cut + 1):
            layer = features[index]
            if isinstance(layer, nn.MaxPool2d):
                before = a.shape
                a, where = nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, return_indices=True)(a)
                switches[index] = where, before
            elif isinstance(layer, nn.ReLU):
                a = torch.where(a > 0, a, torch.zeros_like(a))
            else:
                a = layer(a)
        maps = a[0]
        if unit == "max":
            position = max(((c, y, z) for c, y, z in _grid(maps)), key=lambda p: float(maps[p]))
        elif "," in unit:
            position = tuple(int(n) for n in unit.split(","))  # type: ignore[assignment]
        else:
            position = max((p for p in _grid(maps) if p[0] == int(unit)), key=lambda p: float(maps[p]))
        back = torch.zeros_like(a)
        back[0][position] = maps[position]
        for index in range(cut, -1, -1):
            layer = features[index]
            if isinstance(layer, nn.MaxPool2d):
                where, size = switches[index]
                back = nn.MaxUnpool2d(layer.kernel_size, layer.stride, layer.padding)(back, where, output_size=size)
            elif isinstance(layer, nn.ReLU):
                back = torch.where(back > 0, back, torch.zeros_like(back))
            else:
                transposed = nn.ConvTranspose2d(
                    layer.out_channels, layer.in_channels, layer.kernel_size, layer.stride, layer.padding, bias=False  # type: ignore[arg-type]
                )  # fmt: skip
                transposed.weight.data = layer.weight.data
                back = transposed(back)
    return back, position, float(maps[position])


def _grid(maps: Tensor) -> list[tuple[int, int, int]]:
    channels, height, width = maps.shape
    return [(c, y, z) for c in range(channels) for y in range(height) for z in range(width)]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5, 6, 7])
def test_equals_an_explicit_deconvnet(cut: int, unit: str) -> None:
    """At convolutions (even one with a negative unit), ReLUs and poolings alike."""
    net = seeded(VGGLike)
    found = ask("deconvnet", net, X, layer=f"features.{cut}", unit=unit)
    for b in range(2):
        expected, (c, y, z), activation = explicit(net.features, cut, X[b : b + 1], unit)
        subject = found.subjects[b][0]
        assert (
            found.extra(b, 0) == {"unit": [c, y, z]}
            and subject.identity.index == c
            and subject.identity.slug == f"unit-{c}-{y}-{z}"
        )
        assert subject.score == pytest.approx(activation, rel=1e-9) and subject.score_kind == "activation"
        if activation == 0:
            assert not found.channels[b].any() and not expected.any()
        else:
            assert same(found.channels[b, 0], expected[0])
            assert same(found.map[b, 0], expected[0].abs().amax(0))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["max", "7"])
@pytest.mark.parametrize("cut", [8, 9, 10])
def test_equals_an_explicit_deconvnet_on_vgg11(cut: int, unit: str) -> None:
    """A convolution, its ReLU and the pooling behind, on torchvision's network with seeded weights."""
    from torchvision import models

    net = seeded(lambda: models.vgg11(weights=None, init_weights=False).features, dtype=torch.float32)
    x = images(1, 32, dtype=torch.float32)
    expected, position, _ = explicit(net, cut, x, unit)  # type: ignore[arg-type]
    found = ask("deconvnet", net, x, layer=str(cut), unit=unit)
    assert found.extra(0, 0) == {"unit": list(position)}
    assert same(found.channels[0, 0], expected[0], 1e-4)


def test_nothing_behind_the_layer_is_computed() -> None:
    net = seeded(VGGLike)
    network = Network(net)
    network.feature_layer("features.4", X.shape[1:])
    net.features[5].register_forward_pre_hook(lambda m, args: pytest.fail("the layer behind ran"))
    grads, _ = network.project(X, "features.4", lambda maps: maps, "deconv")
    assert grads.any()


def test_answer_names_the_unit_and_not_a_class() -> None:
    found = answers(model_of(seeded(VGGLike), 16), "deconvnet", X, "top3", layer="features.4", unit="3")
    for image in found:
        (answer,) = image  # type: ignore[misc]
        c, y, z = answer.extras["unit"]
        assert (
            c == 3 and answer.objective.label == f"features.4[3,{y},{z}]" and answer.objective.slug == f"unit-3-{y}-{z}"
        )
        assert answer.probability is None and answer.score_kind == "activation"
        assert answer.map.shape == (16, 16) and answer.channels.shape == (3, 16, 16)


def test_default_layer_is_projected_without_a_layer() -> None:
    model = model_of(seeded(GapHead), 16)
    by_default, named = (answers(model, "deconvnet", X, unit="max", layer=layer) for layer in (None, "features"))
    assert same(by_default[0][0].map, named[0][0].map, 1e-12)  # type: ignore[index]


@pytest.mark.parametrize("unit", ["8", "0,99,0", "0,0,99", "99,0,0"])
def test_unit_outside_the_layer(unit: str) -> None:
    with pytest.raises(VisxError, match=r"outside layer features\.4") as caught:
        ask("deconvnet", seeded(VGGLike), X, layer="features.4", unit=unit)
    assert caught.value.code == 2 and "8 channels of 8 x 8" in caught.value.hint


@pytest.mark.parametrize("unit", ["strongest", "1,2", "-1", "1,2,3,4", ""])
def test_unit_that_is_none(unit: str) -> None:
    with pytest.raises(VisxError) as caught:
        ask("deconvnet", seeded(VGGLike), X, layer="features.4", unit=unit)
    assert caught.value.code == 2
