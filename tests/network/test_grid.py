"""Layers as feature grids: every layout, what is refused and why, and which run of a module is explained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES, images, seeded
from oracles import answers, ask, model_of, plain_gradcam, same
from visx import VisxError
from visx.network.grid import FeatureGrid
from visx.network.network import Network

X = images(2, 16)
WIDE = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers(net: nn.Module, x: Tensor = X) -> dict[str, tuple[FeatureGrid | None, str]]:
    network = Network(net)
    network.look(x.shape[1:])
    return {name: (one.grid, one.reason) for name, one in network.recorded[x.shape[1:]].items()}


class LastAxis(nn.Module):
    """Blocks of (B, H, W, C), averaged over space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, CLASSES)
        nn.init.normal_(self.norm.weight)
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.fc(self.norm(x + self.block(x)).mean((1, 2)))


@pytest.mark.parametrize("x", [X, WIDE], ids=["square", "wide"])
def test_channels_last(x: Tensor) -> None:
    """With a mean and a linear layer behind, alpha_k = w_k / (h w): the map is the class's own weights times the features."""
    net = seeded(LastAxis)
    grid, _ = layers(net, x)["norm"]
    assert grid is not None and grid.layout == "channels last"
    assert grid.shape == (6, x.shape[2] // 4, x.shape[3] // 4)
    kept: list[Tensor] = []
    net.norm.register_forward_hook(lambda m, a, output: kept.append(output))
    net(x)
    expected = torch.einsum("k,bhwk->bhw", net.fc.weight[2], kept[0]) / (grid.shape[1] * grid.shape[2])
    assert same(ask("gradcam", net, x, (2,), layer="norm", relu=False).map[:, 0], expected)
    assert model_of(net, x.shape[-1]).anatomy.default_layer == "norm"


class Patches(nn.Module):
    """Tokens with `before` and `behind` others, through a mixing attention, the patches averaged."""

    def __init__(self, before: int = 0, behind: int = 0, by_columns: bool = False) -> None:
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, CLASSES)
        self.first, self.last = nn.Parameter(torch.randn(1, before, 8)), nn.Parameter(torch.randn(1, behind, 8))
        self.qkv, self.weights, self.proj = nn.Linear(8, 24), nn.Identity(), nn.Linear(8, 8)
        self.scores = nn.Dropout(0.1)
        self.before, self.by_columns = before, by_columns

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        patches = (x.transpose(2, 3) if self.by_columns else x).flatten(2).transpose(1, 2)
        count = patches.shape[1]
        x = torch.cat([self.first.expand(len(x), -1, -1), patches, self.last.expand(len(x), -1, -1)], 1)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = self.scores((q @ k.transpose(-2, -1)).softmax(-1) * 1)
        x = self.norm(x + self.proj((weights @ v).transpose(1, 2).flatten(2)))
        return self.fc(x[:, self.before : self.before + count].mean(1))


@pytest.mark.parametrize("x", [X, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize(("before", "behind"), [(0, 0), (1, 0), (5, 0), (0, 1), (2, 3)])
@pytest.mark.parametrize("by_columns", [False, True], ids=["by rows", "by columns"])
def test_tokens(x: Tensor, before: int, behind: int, by_columns: bool) -> None:
    net = seeded(lambda: Patches(before, behind, by_columns))
    height, width = x.shape[2] // 4, x.shape[3] // 4
    grid, _ = layers(net, x)["norm"]
    assert grid is not None and grid.shape == (8, height, width) and grid.layout.startswith("tokens")
    kept: list[Tensor] = []
    net.norm.register_forward_hook(lambda m, a, output: kept.append(output))
    net(x)
    tokens = kept[0][:, before : before + height * width]
    expected = (tokens @ net.fc.weight[3]) / (height * width)
    maps = expected.view(-1, width, height).transpose(1, 2) if by_columns else expected.view(-1, height, width)
    assert same(ask("gradcam", net, x, (3,), layer="norm", relu=False).map[:, 0], maps)


def test_batch_second() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, CLASSES)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))

    net = seeded(Sequence)
    expected = plain_gradcam(net, "block", X, 1, lambda out: out.permute(1, 2, 0).unflatten(2, (4, 4)))
    assert same(ask("gradcam", net, X, (1,), layer="block", relu=False).map, expected)
    assert model_of(net, 16).anatomy.default_layer == "block"


def test_there_and_back() -> None:
    for net, name in ((seeded(LastAxis), "norm"), (seeded(lambda: Patches(2, 1, True)), "norm")):
        grid, _ = layers(net)[name]
        assert grid is not None
        kept: list[Tensor] = []
        net.get_submodule(name).register_forward_hook(lambda m, a, output, kept=kept: kept.append(output))
        net(X)
        maps = torch.randn(2, *grid.shape, dtype=torch.float64)
        back = grid.output(maps, kept[0])
        assert back.shape == kept[0].shape and same(grid.maps(back), maps)
        assert int(back.ne(0).sum()) == maps.numel()  # nothing where no cell is


def test_a_unit_of_a_channels_last_layer_is_projected_from_its_own_place() -> None:
    class Rectified(LastAxis):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(F.relu(self.stem(x)).permute(0, 2, 3, 1)).mean((1, 2)))

    net = seeded(Rectified)
    found = ask("deconvnet", net, X, layer="norm", unit="2,3,1").channels[:, 0]
    where = found.abs().sum(1).ne(0)
    assert where[:, 12:, 4:8].any() and not where[:, :12].any() and not where[:, :, 8:].any()


class Odd(nn.Module):
    """A channels-last network whose layers are not all pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, CLASSES)
        for name in ("windows", "ordered", "rolled", "upper", "pooled", "vector", "bias", "scores", "border"):
            self.add_module(name, nn.Dropout(0.1))
        self.table = nn.Parameter(torch.randn(1, 6, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * 1
        split = x.reshape(-1, 6, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1)  # B, nh, nw, 2, 2, C
        windows = self.windows(split.reshape(-1, 4, 6) * 1)
        self.ordered(split.reshape(-1, 16, 6) * 1)
        self.rolled(torch.roll(x, (1, 1), (2, 3)))
        self.upper(x[:, :, :2] * 1)
        self.bias(self.table * 1)
        self.border(F.pad(x, (1, 1, 1, 1)))
        tokens = x.flatten(2).transpose(1, 2)
        self.scores((tokens @ tokens.transpose(1, 2))[:, None].softmax(-1) * 1)
        back = windows.view(-1, 2, 2, 2, 2, 6).permute(0, 5, 1, 3, 2, 4).reshape(-1, 6, 4, 4)
        pooled = self.pooled(back.mean((2, 3), keepdim=True))
        return self.fc(self.vector(pooled.flatten(1) * 1))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("windows", "4 rows for one image"), ("ordered", "not in the order"), ("rolled", "not in the order"),
        ("upper", "only a part"), ("vector", "one vector"), ("bias", "does not depend"), ("scores", "pairs of places"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(VisxError, match=why) as caught:
        answers(model_of(seeded(Odd), 16), "gradcam", X, layer=name)
    assert caught.value.code == 4 and "--spatial" in caught.value.hint


def test_a_border_of_padding_is_left_out() -> None:
    grid, _ = layers(seeded(Odd))["border"]
    assert grid is not None and grid.shape == (6, 4, 4) and "border" in grid.layout


def test_one_cell_is_said_to_be_that() -> None:
    (image, _) = answers(model_of(seeded(Odd), 16), "gradcam", X, layer="pooled", relu="false")
    answer = image[0]  # type: ignore[index]
    assert "one cell" in answer.warnings[0] and answer.native.shape == (1, 1)


class Twins(nn.Module):
    """Compares the picture with a reference that it keeps, by one branch that runs twice."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.reference, self.fc, self.first = nn.Parameter(torch.randn(1, 3, 16, 16)), nn.Linear(6, CLASSES), first

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            a, b = self.branch(self.reference), self.branch(x)
        else:
            b, a = self.branch(x), self.branch(self.reference)
        return self.fc((b - a).pow(2).mean((2, 3)))


@pytest.mark.parametrize("first", [True, False], ids=["reference first", "reference last"])
def test_of_twins_the_run_that_saw_the_picture_is_explained(first: bool) -> None:
    net = seeded(lambda: Twins(first))
    a, b = net.branch(net.reference).detach(), net.branch(X).detach()
    alpha = (2 * (b - a) / 64 * net.fc.weight[1][None, :, None, None]).mean((2, 3), keepdim=True)
    found = ask("gradcam", net, X, (1,), layer="branch", relu=False)
    assert same(found.map, (alpha * b).sum(1, keepdim=True)) and not found.warned(0, 0)
    unit = ask("deconvnet", seeded(lambda: TwinRelus(first)), X, layer="branch", unit="max")
    assert unit.channels.any()
    assert model_of(net, 16).anatomy.default_layer == "branch"


@pytest.mark.parametrize("second", ["flipped", "aside"])
def test_of_two_runs_the_one_that_is_a_map_on_the_way_to_the_score_is_explained(second: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.fc = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh()), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.fc(self.branch(x).mean((2, 3)))
            other = self.fc(self.branch(x.flip(3) if second == "flipped" else x * 2).mean((2, 3)))
            return (logits + other) / 2 if second == "flipped" else logits

    net = seeded(Twice)
    assert model_of(net, 16).anatomy.default_layer == "branch"
    found = ask("gradcam", net, X, (1,), layer="branch", relu=False)
    alpha = net.fc.weight[1][None, :, None, None] / 64 / (2 if second == "flipped" else 1)
    assert same(found.map, (alpha * net.branch(X)).sum(1, keepdim=True))
    assert "run 1 is explained" in found.warned(0, 0)[0]


class Windowed(nn.Module):
    """Patches cut out first, a convolution within each, which then is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.proj, self.norm = nn.Conv2d(3, 4, 2, 2), nn.Linear(16, 8), nn.LayerNorm(8)
        self.fc = nn.Linear(8, CLASSES)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, 4, stride=4).transpose(1, 2).reshape(-1, 3, 4, 4)
        return self.fc(self.norm(self.proj(self.inner(windows).reshape(len(x), -1, 16))).mean(1))


@pytest.mark.parametrize("x", [X, WIDE], ids=["square", "wide"])
def test_patches_that_are_cut_out_before_a_convolution(x: Tensor) -> None:
    net = seeded(Windowed)
    height, width = x.shape[2] // 4, x.shape[3] // 4
    found = layers(net, x)
    assert found["norm"][0] is not None and found["norm"][0].shape == (8, height, width)
    assert found["inner"][0] is None and "windows" in found["inner"][1]
    want = plain_gradcam(net, "norm", x, 1, lambda o: o.transpose(1, 2).unflatten(2, (height, width)))
    assert same(ask("gradcam", net, x, (1,), layer="norm", relu=False).map, want)


class TwinRelus(Twins):
    def __init__(self, first: bool) -> None:
        super().__init__(first)
        self.branch[1] = nn.ReLU()


def test_a_view_made_before_the_layer_may_be_changed_in_place_behind_it() -> None:
    """GhostNetV2: `x[:, :k]` is cut out first, then a shortcut (the layer) is added in place."""

    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shortcut, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)[:, :6]
            y += self.shortcut(x)
            return self.fc(y.relu().mean((2, 3)))

    net = seeded(Ghost)
    expected = plain_gradcam(net, "shortcut", X, 0, lambda out: out)
    assert same(ask("gradcam", net, X, (0,), layer="shortcut", relu=False).map, expected)


def small_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 12, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0)


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=CLASSES)
    nn.init.normal_(net.heads.head.weight)
    return net


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.1.0.norm1", "features.3", "norm"])
def test_torchvision_s_swin_against_plain_pytorch(layer: str) -> None:
    net = seeded(small_swin)
    expected = plain_gradcam(net, layer, X, 2, lambda out: out.permute(0, 3, 1, 2))
    assert same(ask("gradcam", net, X, (2,), layer=layer, relu=False).map, expected)


@pytest.mark.parametrize("layer", ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.ln_1"])
def test_torchvision_s_vit_against_plain_pytorch(layer: str) -> None:
    net = seeded(small_vit)
    expected = plain_gradcam(net, layer, X, 2, lambda out: out[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    assert expected.abs().max() > 0
    assert same(ask("gradcam", net, X, (2,), layer=layer, relu=False).map, expected)


def test_default_layers_of_transformers() -> None:
    assert model_of(seeded(small_vit), 16).anatomy.default_layer == "encoder.layers.encoder_layer_1.ln_1"
    swin = model_of(seeded(small_swin), 16).anatomy
    assert swin.default_layer == "permute"
    (pooled,) = (one.grid for one in swin.layers if one.name == "permute")
    assert pooled is not None and pooled.shape == (24, 4, 4)


@pytest.mark.parametrize("x", [X, WIDE], ids=["square", "wide"])
def test_cam_of_channels_last_and_of_tokens(x: Tensor) -> None:
    """CAM is the Grad-CAM before its ReLU times the number of cells, where a mean and a linear layer follow."""
    for build in (LastAxis, Patches, lambda: Patches(2, 1), lambda: Patches(by_columns=True)):
        net = seeded(build)  # type: ignore[arg-type]
        maps = ask("cam", net, x, (1, 3)).map
        expected = ask("gradcam", net, x, (1, 3), layer="norm", relu=False).map * maps[0, 0].numel()
        assert same(maps, expected)
        assert model_of(net, x.shape[-1]).anatomy.gap_head


def test_cam_where_other_tokens_are_averaged_too_is_refused() -> None:
    class All(Patches):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.first.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
            return self.fc(self.norm(x).mean(1))

    assert not model_of(seeded(lambda: All(1)), 16).anatomy.gap_head
    assert model_of(seeded(lambda: All(0)), 16).anatomy.gap_head


def test_cam_of_one_logit() -> None:
    """Class 1 is the logit, class 0 its opposite."""

    class One(LastAxis):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 1)

    (image,) = answers(model_of(seeded(One), 16), "cam", X[:1], "top2")
    by_target = {answer.objective.index: answer.map for answer in image}  # type: ignore[union-attr]
    assert same(torch.from_numpy(by_target[0]), -torch.from_numpy(by_target[1]), 1e-6)


def test_cam_beside_an_auxiliary_head_that_pools_later() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.aux = nn.Conv2d(3, 6, 3), nn.Linear(6, CLASSES), nn.Conv2d(6, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            logits = self.fc(x.mean((2, 3)))
            self.kept = self.aux(x).mean((2, 3))
            return logits

    net = seeded(Auxiliary)
    expected = torch.einsum("k,bkhw->bhw", net.fc.weight[1], net.conv(X))
    assert same(ask("cam", net, X, (1,)).map[:, 0], expected)
