"""Several layers fused into one map: the mean of scaled maps, written as loops, from one forward and one backward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx
from nets import CLASSES, Probe, images, seeded
from oracles import answers, ask, model_of, same
from visx import VisxError
from visx.methods.common.layers import fused
from visx.network.network import Network

X = images(2, 16)


class Pyramid(nn.Module):
    """Three stages of 8 x 8, 4 x 4 and 2 x 2 cells; the last two stand in a module of their own, and a branch beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.entrance, self.behind = Probe(), Probe()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.top = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 7, 3, 2, 1), nn.Tanh())
        self.side = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entrance(x)
        top, side = self.top(self.behind(self.low(x))), self.side(x)
        return self.fc(torch.cat([top.mean((2, 3)), (side * 2).mean((2, 3))], 1))


LAYERS = ("low", "top.0", "top", "side", "top.2")


def alone(net: nn.Module, layer: str, target: int, relu: bool) -> Tensor:
    """Grad-CAM of one layer."""
    return ask("gradcam", net, X, (target,), layer=layer, relu=relu).map


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "layers", [("low", "top"), ("top", "low"), ("top.0", "top", "low"), ("side", "low"), ("low", "side")]
)
def test_mean_of_maps_divided_by_their_largest_value(layers: tuple[str, ...], relu: bool) -> None:
    net = seeded(Pyramid)
    size = 8
    expected = torch.zeros(2, 1, size, size, dtype=torch.float64)
    for name in layers:
        coarse = alone(net, name, 2, relu)
        for b in range(2):
            largest = max(abs(float(v)) for v in coarse[b].flatten())
            expected[b] += F.interpolate(coarse[b : b + 1] / largest, (size, size), mode="bilinear")[0] / len(layers)
    found = ask("gradcam", net, X, (2,), layer="+".join(layers), relu=relu)
    assert same(found.map, expected)
    assert float(found.map.abs().max()) <= 1 and (not relu or float(found.map.min()) >= 0)


@pytest.mark.parametrize("kind", ["plain", "loaded"])
def test_gradients_of_several_layers_are_those_of_each_alone(kind: str) -> None:
    """Also of a layer within another, of one behind another, and of one beside them; in any order."""
    net = seeded(Pyramid)
    network = Network(net, owned=kind == "loaded", accelerate=kind == "loaded")

    def scores(values: Tensor) -> Tensor:
        return values[:, [1, 3]]

    with network.session():
        together = network.layers_gradients(X, LAYERS, scores)
        for name, result in zip(LAYERS, together, strict=True):
            single = network.layer_gradients(X, name, scores)
            assert result.layer.name == name and result.grads.abs().max() > 0
            assert same(result.grads, single.grads) and same(result.activation, single.activation)


@pytest.mark.parametrize("targets", [1, 3])
def test_one_forward_and_one_backward_pass_give_all(targets: int) -> None:
    net = seeded(Pyramid)
    model = model_of(net, 16)
    _ = model.anatomy
    for probe in (net.entrance, net.behind):
        probe.forwards.clear()
    answers(model, "gradcam", X, f"top{targets}", layer="top+low+top.0")
    assert net.entrance.forwards == net.behind.forwards == [2]
    assert net.entrance.backwards == [] and net.behind.backwards == [2] * targets


def test_guided_gradcam_takes_the_fused_map() -> None:
    net = seeded(Pyramid)
    cam = ask("gradcam", net, X, (2,), layer="low+top").map
    guided = ask("guided_backprop", net, X, (2,)).channels
    found = ask("guided_gradcam", net, X, (2,), layer="low+top")
    expected = F.interpolate(cam, (16, 16), mode="bilinear", align_corners=False)[:, :, None] * guided
    assert same(found.channels, expected)


def test_a_map_of_zeros_adds_nothing_and_is_said() -> None:
    net = seeded(Pyramid)
    with torch.no_grad():
        net.fc.weight[2, 7:] = -net.fc.weight[2, 7:].abs()
    found = ask("gradcam", net, X, (2,), layer="side+low")
    low = alone(net, "low", 2, True)
    assert "of layer side is negative everywhere" in found.warned(0, 0)[0] and len(found.warned(0, 0)) == 1
    assert same(found.map, low / low.amax((2, 3), keepdim=True) / 2)


def test_the_size_of_the_fused_map_is_the_largest_of_each_side() -> None:
    wide, high = torch.rand(1, 1, 2, 6), torch.rand(1, 1, 4, 3)
    assert fused([wide, high]).shape == (1, 1, 4, 6) and fused([wide]) is wide


@pytest.mark.parametrize(
    ("layer", "code", "says"),
    [
        ("low+tpo", 2, "unknown layer 'tpo'.*top"), ("low+", 2, "plus with no layer beside"),
        ("low+fc", 4, "layer fc is not a feature map"), ("low+top[9]", 2, r"unknown layer 'top\[9\]'"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_named(layer: str, code: int, says: str) -> None:
    with pytest.raises(VisxError, match=says) as caught:
        answers(model_of(seeded(Pyramid), 16), "gradcam", X, layer=layer)
    assert caught.value.code == code


def test_a_method_that_does_not_fuse_says_so() -> None:
    with pytest.raises(VisxError, match="deconvnet makes no map of several layers") as caught:
        answers(model_of(seeded(Pyramid), 16), "deconvnet", X, layer="low+top", unit="max")
    assert caught.value.code == 4 and "gradcam" in caught.value.hint


def test_in_python_a_list_within_the_list_is_one_map() -> None:
    net = seeded(Pyramid, dtype=torch.float32)
    model, picture = visx.wrap(net, size=16), np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    text = visx.explain(model, picture, layer="low + top[-2]")
    assert text.layer == "low+top.2"
    for layer in ([["low", "top.2"]], [(net.low, net.top[2])], ["low+top.2"], [["low", "low", "top.2"]]):
        found = visx.explain(model, picture, layer=layer)
        found = found[0] if isinstance(found, list) else found
        assert found.layer == "low+top.2" and np.array_equal(found.map, text.map)
    several = visx.explain(model, picture, layer=["low", ["low", "top"]])
    assert [result.layer for result in several] == ["low", "low+top"]
    assert visx.explain(model, picture, layer="low+low").layer == "low"
    with pytest.raises(VisxError, match="layer is"):
        visx.explain(model, picture, layer=[["low", 4]])


def test_a_module_whose_name_has_a_plus() -> None:
    net = nn.Sequential()
    net.add_module("a+b", nn.Conv2d(3, 4, 3))
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(4, CLASSES))
    found = answers(model_of(net.double().eval(), 16), "gradcam", X, layer="a+b")
    assert found[0][0].map.shape == (16, 16)  # type: ignore[index]
