"""How a picture becomes the input, where its owner says it; networks of any number of channels; channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import visx
from nets import TinyViT, seeded
from oracles import of_transformers
from visx.errors import VisxError
from visx.images.geometry import Preprocess
from visx.methods import all_methods, get_method
from visx.models.preprocessing import adapted

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
FEW: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 3},
    "lime": {"samples": 60},
    "rise": {"masks": 20},
    "meaningful_perturbation": {"iterations": 3, "mask_size": 10},
    "occlusion": {"patch": 5, "stride": 5},
}


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.conv, self.relu, self.head = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


class Last(Net):
    """Takes (B, H, W, C), and asks its own flag."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 3 and not self.training
        return super().forward(x.permute(0, 3, 1, 2))


def of(channels: int, method: str = "gradcam") -> visx.Model:
    mean, std = np.linspace(0.2, 0.6, channels), np.linspace(0.3, 0.5, channels)
    attends = of_transformers(get_method(method))
    net = seeded(lambda: TinyViT(channels=channels), dtype=torch.float32) if attends else Net(channels)
    return visx.wrap(net, size=20, resize=20, mean=tuple(mean), std=tuple(std))


@pytest.mark.parametrize("channels", [2, 4, 6, 11])
@pytest.mark.parametrize("method", [m.name for m in all_methods()])
def test_every_method_explains_networks_of_any_channels(method: str, channels: int) -> None:
    values = np.random.default_rng(channels).random((20, 20, channels), dtype=np.float32)
    model = of(channels, method)
    result = visx.explain(model, values, method, **FEW.get(method, {}))
    assert result.map.shape == (20, 20) and np.isfinite(result.map).all()
    assert result.overlay().shape == (20, 20, 3)
    mean, std = (np.asarray(v, np.float32) for v in (model.preprocess.mean, model.preprocess.std))
    x = torch.from_numpy(((values - mean) / std).transpose(2, 0, 1))[None].requires_grad_()
    logits = model.module(x)
    assert result.probability == pytest.approx(float(logits.softmax(1)[0, result.target].detach()), rel=1e-4)
    if method == "backprop":
        wanted = torch.autograd.grad(logits[0, result.target], x)[0][0].numpy()
        assert result.channels.shape == (channels, 20, 20)
        assert np.abs(result.channels - wanted).max() < 1e-6
    if method == "input_x_gradient":
        wanted = (torch.autograd.grad(logits[0, result.target], x)[0] * x)[0].detach().numpy().sum(0)
        assert np.abs(result.map - wanted).max() < 1e-5


def test_arrays_of_channels_are_shown_by_the_first_three_and_ambiguous_ones_refused() -> None:
    values = np.random.default_rng(1).random((20, 20, 11), dtype=np.float32)
    result = visx.explain(of(11), values)
    assert result._picture is not None
    assert np.array_equal(result._picture.rgb, np.rint(values[..., :3] * 255).astype(np.uint8))
    with pytest.raises(VisxError, match=r"channels come last: array.transpose\(1, 2, 0\)"):
        visx.explain(of(11), values.transpose(2, 0, 1))
    for wrong in (values[..., :10], values[..., :3]):
        with pytest.raises(VisxError, match="with 11 channels"):
            visx.explain(of(11), wrong)
    bytes_ = (values * 255).astype(np.uint8)
    assert visx.explain(of(11), bytes_, target=0).score == pytest.approx(
        visx.explain(of(11), (bytes_ / 255).astype(np.float32), target=0).score, rel=1e-5
    )
    twelve = (values * 4095).astype(np.uint16)
    with pytest.raises(VisxError, match="--range"):
        visx.explain(of(11), twelve)
    assert visx.explain(of(11), twelve, range=(0, 4095), target=0).remarks
    with pytest.raises(VisxError, match="LOW must be below HIGH"):
        visx.explain(of(11), twelve, range=(5, 5))
    with pytest.raises(VisxError, match="black, white"):
        visx.explain(of(11), twelve, range=5)  # type: ignore[arg-type]


def test_a_network_of_four_channels_takes_the_opacity_as_data(tmp_path: Any) -> None:
    rgba = np.random.default_rng(2).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    model = of(4)
    from_file = visx.explain(model, tmp_path / "a.png", target=1).score
    assert from_file == pytest.approx(visx.explain(model, rgba, target=1).score, rel=1e-6)
    assert from_file == pytest.approx(visx.explain(model, Image.fromarray(rgba), target=1).score, rel=1e-6)
    Image.fromarray(rgba[..., :3]).save(tmp_path / "b.png")
    with pytest.raises(VisxError, match="the picture has 3 channels, and the network takes 4"):
        visx.explain(model, tmp_path / "b.png")


TRANSFORMS = {
    "size": ({"size": 32}, v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32)])),
    "size, resize": ({"size": 32, "resize": 45}, v2.Compose([v2.Resize(45, antialias=True), v2.CenterCrop(32)])),
    "stretched, cropped": ({"size": 32, "resize": (40, 33)}, v2.Compose([v2.Resize((40, 33)), v2.CenterCrop(32)])),
    "squash": ({"size": (32, 24), "squash": True}, v2.Resize((32, 24), antialias=True)),
    "interpolation": (
        {"size": 32, "squash": True, "interpolation": "bicubic"},
        v2.Resize((32, 32), v2.InterpolationMode.BICUBIC),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_options_are_torchvisions_transforms(name: str) -> None:
    options, transform = TRANSFORMS[name]
    preprocess = adapted(Preprocess(256, (224, 224)), **options, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))  # type: ignore[arg-type]
    wanted = np.asarray(transform(Image.fromarray(PHOTO)), np.float32) / 255
    wanted = ((wanted - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]).transpose(2, 0, 1)
    assert np.abs(preprocess(PHOTO)[0] - wanted).max() < 1e-5


def test_a_size_keeps_the_proportions_of_the_source() -> None:
    assert adapted(Preprocess(256, (224, 224)), size=112).resize == 128
    tall = adapted(Preprocess(256, (224, 224)), size=(224, 112))
    assert (tall.resize, tall.fit) == ((256, 128), "cover")
    _, place = tall(PHOTO)
    left, top, right, bottom = place.box
    assert (right - left) / (bottom - top) == pytest.approx(0.5, rel=0.02)  # nothing is stretched
    stretched = Preprocess((240, 240), (240, 240))
    assert adapted(stretched, size=120).resize == (120, 120)
    assert adapted(stretched, squash=False).fit == "cover"


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0}, {"size": "224"}, {"size": (1, 2, 3)}, {"resize": 1.5}, {"squash": True, "resize": 9}, {"mean": (0.5,)},
        {"std": (1, 1, 0)}, {"mean": ("a", 1, 2)}, {"mean": (float("nan"), 0, 0)}, {"layout": "NCWH"}, {"interpolation": "cubicc"},
        {"range": (1, 1)}, {"range": 7}, {"range": (0, float("inf"))},
    ],
)  # fmt: skip
def test_wrong_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(VisxError) as error:
        visx.load_model("resnet18", "random", **options)
    assert error.value.code == 2


def test_any_source_takes_them() -> None:
    model = visx.load_model("resnet18", "random", size=64, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    assert model.input_size == (64, 64) and model.preprocess.resize == 73 and model.preprocess.mean == (0, 0, 0)
    assert visx.explain(model, PHOTO).map.shape == (64, 64)
    model = visx.load_model(size=96, squash=True)
    assert model.preprocess.resize == (96, 96) and visx.explain(model, PHOTO).map.shape == (96, 96)
    fixed = visx.load_model("timm/levit_128s", "random", size=112)
    with pytest.raises(VisxError, match="112"):
        visx.explain(fixed, PHOTO, "backprop")


def test_channels_last_modules() -> None:
    inner = Last()
    plain = Net()
    assert inner.training
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    last, first = (visx.wrap(m, size=20, layout=how) for m, how in ((inner, "NHWC"), (plain, "NCHW")))
    for method in ("backprop", "gradcam", "occlusion"):
        layer = "conv" if method == "gradcam" else None
        a, b = (visx.explain(m, PHOTO, method, layer=layer, target=2, **FEW.get(method, {})) for m in (last, first))
        assert np.abs(a.map - b.map).max() < 1e-6 and np.abs(b.map).max() > 0
        if method == "backprop":
            assert a.channels.shape == (3, 20, 20)
    assert inner.training and "forward" not in vars(inner) and not inner._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())
    assert list(last.module.state_dict()) == list(before)


@pytest.mark.parametrize("squash", ["x", "no", 1, 0, ()])
def test_squash_is_true_or_false(squash: object) -> None:
    with pytest.raises(VisxError, match="squash is"):
        adapted(Preprocess(32, (24, 24)), squash=squash)  # type: ignore[arg-type]
