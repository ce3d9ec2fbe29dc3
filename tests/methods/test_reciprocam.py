"""Recipro-CAM: cell by cell as whole passes, its closed form, the token form, and what is computed how often."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nets import CLASSES, DenseLike, GapHead, VGGLike, images, seeded
from oracles import answers, ask, model_of, pearson, same
from visx.network.network import Network
from visx.network.tail import Tail

X = images(2, 16)


def ours(net: nn.Module, layer: str, x: Tensor, target: int, **params: Any) -> Tensor:
    """The method's map of the probability (B, 1, h, w)."""
    return ask("reciprocam", net, x, (target,), layer=layer, kind="prob", **params).map


def around(i: int, j: int, height: int, width: int, mask: str) -> Tensor:
    """The weight of each place for the cell in row i and column j."""
    weights = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            dy, dx = abs(y - i), abs(x - j)
            if mask == "cell":
                weights[y, x] = float(dy == dx == 0)
            elif dy <= 1 and dx <= 1:
                weights[y, x] = (0.5 if dy == 0 else 0.25) * (0.5 if dx == 0 else 0.25)
    return weights


@torch.no_grad()
def slow(
    net: nn.Module,
    layer: str,
    x: Tensor,
    target: int,
    size: tuple[int, int],
    mask: str = "gaussian",
    tokens: int = -1,
    keep: bool = True,
) -> Tensor:
    """arXiv:2209.14074 and 2310.02588: one whole pass a cell, the layer's output multiplied with the cell's mask. `tokens`:
    how many that are no patch come first; -1 for maps (B, K, h, w)."""
    height, width = size
    maps = torch.zeros(len(x), 1, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            weights = around(i, j, height, width, mask)
            if tokens >= 0:
                weights = torch.cat([torch.full((tokens,), float(keep), dtype=torch.float64), weights.flatten()])[
                    None, :, None
                ]
            handle = net.get_submodule(layer).register_forward_hook(lambda m, a, output, w=weights: output * w)
            maps[:, 0, i, j] = net(x).softmax(1)[:, target]
            handle.remove()
    return maps


@pytest.mark.parametrize("mask", ["gaussian", "cell"])
def test_a_convolutional_tail_against_a_pass_for_each_cell(mask: str) -> None:
    net = seeded(lambda: VGGLike(16))
    found = ours(net, "features.2", X, 2, mask=mask)
    expected = slow(net, "features.2", X, 2, tuple(found.shape[2:]), mask)
    assert same(found, expected) and pearson(found, expected) >= 0.9999


@torch.no_grad()
def test_closed_form_behind_it_a_global_average_and_a_linear_layer() -> None:
    """Logits are linear in the features: CAM, blurred with the mask and divided by the area, plus the bias."""
    net = seeded(GapHead)
    cam = ask("cam", net, X, (0, 3)).map
    kernel = around(1, 1, 3, 3, "gaussian")[None, None]
    blurred = F.conv2d(cam.flatten(0, 1)[:, None], kernel, padding=1).view_as(cam)
    expected = blurred / (cam.shape[2] * cam.shape[3]) + net.fc.bias[[0, 3]][None, :, None, None]
    for image in range(2):
        found = ask("reciprocam", net, X[image : image + 1], (0, 3), layer="features", kind="logit").map
        assert same(found, expected[image : image + 1])


def vit(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    sizes = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    net = seeded(lambda: timm.models.VisionTransformer(**sizes | options))
    with torch.no_grad():  # a head of zeros, layer scales of nearly zero
        for n, parameter in enumerate(net.parameters()):
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 0.1
            )
    return net


WIDE = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("registers", [0, 3])
def test_tokens_against_a_pass_for_each_cell(registers: int, keep: bool) -> None:
    net = vit(reg_tokens=registers)
    for layer in ("blocks.2.norm1", "blocks.1"):
        found = ours(net, layer, WIDE, 1, class_token=keep)
        expected = slow(net, layer, WIDE, 1, (4, 6), tokens=1 + registers, keep=keep)
        assert same(found, expected) and pearson(found, expected) >= 0.9999


@torch.no_grad()
def test_masking_the_skip_connection_too_changes_nothing_where_the_class_token_is_read() -> None:
    """The paper masks both what the last block's first normalisation returns and what goes around its attention."""
    net = vit()
    found = ours(net, "blocks.2.norm1", WIDE[:1], 1)[0, 0]
    block = net.blocks[2]
    kept: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    net(WIDE[:1])
    handle.remove()
    for i, j in ((0, 0), (1, 3), (3, 5)):
        mask = torch.cat([torch.ones(1, dtype=torch.float64), around(i, j, 4, 6, "gaussian").flatten()])[None, :, None]
        x = kept[0] * mask + block.attn(block.norm1(kept[0]) * mask)
        x = x + block.mlp(block.norm2(x))
        assert same(found[i, j], net.head(net.norm(x)[:, 0]).softmax(1)[0, 1])


class _Rows(TorchDispatchMode):
    """How many rows each convolution and product gets."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[int] = []
        self.products: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.convolutions.append(len(args[0]))
        elif name in ("addmm", "mm"):
            self.products.append(len(args[1 if name == "addmm" else 0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(model: Any) -> Iterator[_Rows]:
    _ = model.anatomy
    network = model.network()
    with network.session():
        network.feature_layer("features", model.input_shape)
    with _Rows() as rows:
        yield rows


@pytest.mark.accelerated
@pytest.mark.parametrize("copies", [64, 10])
def test_what_lies_before_the_layer_runs_once(copies: int) -> None:
    """Its two convolutions see the picture once, the linear layer sees every cell, and each batch's first row besides."""
    model = model_of(seeded(GapHead), 12)
    with counted(model) as rows:
        answers(model, "reciprocam", images(1), "top1", layer="features", copies=copies)
    assert set(rows.convolutions) == {1} and len(rows.convolutions) == len(
        [m for m in model.module.modules() if isinstance(m, nn.Conv2d)]
    )
    batches = math.ceil(36 / copies)
    assert sum(rows.products) == 1 + 36 + batches and len(rows.products) == 1 + batches


def test_plain_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = vit()
    with_replay = ours(net, "blocks.1", WIDE, 1)
    monkeypatch.setenv("VISX_PLAIN", "1")
    assert same(ours(net, "blocks.1", WIDE, 1), with_replay, 1e-12)


class Around(nn.Module):
    """What goes around the layer meets what it returned again, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.low, self.layer = nn.Conv2d(3, 6, 3, 2, 1), nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.Tanh())
        self.pool, self.fc, self.way = nn.MaxPool2d(2), nn.Linear(12 if way == "cat" else 6, CLASSES), way

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        small, count = self.pool(low), len(x)
        high = self.layer(low)
        if self.way == "cat":
            high = torch.cat([small, high], 1)
        elif self.way == "add":
            high = high + small
        elif self.way == "in place":
            small += high
            high = small
        elif self.way == "inverse in place":
            high += small
        elif self.way == "batch size from before":
            high = high.reshape(count, 6, -1, 4)
        elif self.way == "all rows as one":
            high = high.permute(1, 0, 2, 3).reshape(6, count, -1, 4).permute(1, 0, 2, 3)
        return self.fc(high.relu().mean((2, 3)))


WAYS = ["cat", "add", "in place", "inverse in place", "batch size from before", "all rows as one"]


@pytest.mark.parametrize("copies", [64, 5])
@pytest.mark.parametrize("way", WAYS)
def test_what_goes_around_the_layer(way: str, copies: int) -> None:
    """Where it cannot be shared by the copies, whole copies are made."""
    net = seeded(lambda: Around(way))
    expected = slow(net, "layer", X, 1, (4, 4))
    found = answers(model_of(net, 16), "reciprocam", X, "1", layer="layer", copies=copies)
    for b in range(2):
        assert same(found[b][0].native, expected[b, 0], 1e-6)  # type: ignore[index]


def test_densenet_s_shortcuts() -> None:
    net = seeded(DenseLike)
    found = ours(net, "features", X, 1)
    assert same(found, slow(net, "features", X, 1, tuple(found.shape[2:])))


def test_batch_statistics_go_one_row_at_a_time() -> None:
    class Coupled(GapHead):
        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            return self.fc(self.pool(x - x.mean(0)[None]).flatten(1) + self.pool(x).flatten(1))

    net = seeded(Coupled)
    (found,) = answers(model_of(net, 12), "reciprocam", images(1), "1", layer="features")
    assert same(found[0].native, slow(net, "features", images(1), 1, (6, 6))[0, 0], 1e-6)  # type: ignore[index]
    assert "depends on the others of its batch" in found[0].warnings[0]  # type: ignore[index]


@pytest.mark.accelerated
def test_a_tensor_that_the_tail_overwrites_is_not_used_again() -> None:
    """The first pass leaves another value behind than the layer met: what lies before the layer is computed anew."""

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.layer, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            low = self.low(x)
            high = self.layer(low)
            return self.fc(high.tanh().mean((2, 3)) + low.mul_(2).mean((2, 3)))

    net = seeded(Overwritten)
    network = Network(net)
    with network.session():
        tail = Tail(network, X[:1], "layer")
        assert tail._front is not None and not tail._front.usable
        for _ in range(2):
            assert same(tail.values(3, lambda own: own.expand(3, -1, -1, -1)), net(X[:1]).expand(3, -1).detach())
