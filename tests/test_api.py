"""The Python API as a notebook uses it: one's own module, any kind of image, errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import visx
from nets import CLASSES, GapHead, TwoConvs, Wrapped, seeded
from oracles import assert_unchanged, fingerprint, same
from visx import VisxError

LABELS = ["cat", "dog", "espresso", "espresso maker", "rocket"]


def picture(seed: int = 0, height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def module(dtype: torch.dtype = torch.float32) -> nn.Module:
    return seeded(GapHead, dtype=dtype)


def model(**more: object) -> visx.Model:
    return visx.wrap(module(), size=16, labels=LABELS, **more)  # type: ignore[arg-type]


def test_the_contract_s_lines(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "img.png")
    mine = visx.wrap(module(), size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), labels=LABELS)
    result = visx.explain(mine, tmp_path / "img.png", method="gradcam", layer="features", target="top1")
    assert isinstance(result, visx.Result)
    assert result.map.shape == (16, 16) and result.map.dtype == np.float32
    assert result.native.shape == (8, 8) and result.layer == "features" and result.method == "gradcam"
    assert result.label == LABELS[result.target] and 0 < result.probability < 1
    overlay = result.overlay()
    assert overlay.shape == (40, 30, 3) and overlay.dtype == np.uint8 and overlay.flags.c_contiguous
    assert not np.array_equal(overlay, picture())


def test_score_is_what_the_module_itself_says() -> None:
    """The input is the picture resized, cropped and normalised: computed here apart."""
    net = module()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    square = picture(height=16, width=16)
    result = visx.explain(visx.wrap(net, size=16, resize=16, mean=mean, std=std), square, "backprop", target=3)
    x = (torch.tensor(square).permute(2, 0, 1) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    x = x[None].requires_grad_()
    logits = net(x)
    (grad,) = torch.autograd.grad(logits[0, 3], x)
    logits = logits.detach()
    assert result.score == pytest.approx(float(logits[0, 3]), rel=1e-5)
    assert result.probability == pytest.approx(float(logits.softmax(1)[0, 3]), rel=1e-5)
    assert same(result.channels, grad[0], 1e-5) and same(result.map, grad[0].abs().amax(0), 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_own_module_is_left_as_it_was(precision: str) -> None:
    mine = module()
    mine.train()
    mine.fc.weight.grad = torch.ones_like(mine.fc.weight)
    mine.fc.bias.requires_grad_(False)
    before = fingerprint(mine)
    for method in ("gradcam", "guided_backprop", "smoothgrad", "integrated_gradients", "cam"):
        params = {"samples": 3} if method == "smoothgrad" else {"steps": 3} if method == "integrated_gradients" else {}
        visx.explain(visx.wrap(mine, size=16), picture(), method, target="top2", precision=precision, **params)
        assert_unchanged(before, fingerprint(mine))


def test_training_goes_on_after_an_explanation() -> None:
    """One step of gradient descent with an explanation in between equals one without."""

    def step(explained: bool) -> Tensor:
        net = module()
        net.train()
        torch.manual_seed(0)
        x = torch.randn(4, 3, 16, 16)
        loss = net(x).square().sum()
        if explained:
            visx.explain(visx.wrap(net, size=16), picture(), "smoothgrad", samples=2)
        loss.backward()
        return net.fc.weight.detach() - 0.1 * net.fc.weight.grad

    assert torch.equal(step(True), step(False))


def test_bare_module_is_wrapped_for_imagenet() -> None:
    bare = visx.explain(module(), picture(), target=2)
    wrapped = visx.explain(
        visx.wrap(module(), size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), picture(), target=2
    )
    assert bare.map.shape == (224, 224) and np.array_equal(bare.map, wrapped.map) and bare.label == "2"


@pytest.mark.parametrize(
    "make", [lambda p: p, Image.fromarray, lambda p: np.dstack([p, np.full_like(p[:, :, :1], 255)])]
)
def test_kinds_of_images(make: Callable[[np.ndarray], object], tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    from_path = visx.explain(model(), str(tmp_path / "a.png"), target="dog")
    found = visx.explain(model(), make(picture()), target="dog")
    assert np.array_equal(found.map, from_path.map) and found.target == 1


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("method", ["gradcam", "smoothgrad"])
def test_list_is_explained_in_batches_like_singles(method: str, batch_size: int) -> None:
    pictures = [picture(s) for s in range(5)]
    together = visx.explain(model(), pictures, method, target=1, batch_size=batch_size)
    assert [r.target for r in together] == [1] * 5
    for single, result in zip(pictures, together, strict=True):
        assert same(result.map, visx.explain(model(), single, method, target=1).map, 1e-5)
    assert not same(together[0].map, together[1].map, 1e-2)


def test_images_then_layers_then_targets() -> None:
    results = visx.explain(model(), [picture(0), picture(1)], layer=["features.4", "features"], target="top2")
    assert [r.layer for r in results] == ["features.4"] * 2 + ["features"] * 2 + ["features.4"] * 2 + ["features"] * 2
    assert results[0].target == results[2].target != results[1].target == results[3].target
    assert results[0].score > results[1].score
    one = visx.explain(model(), [picture()])
    assert isinstance(one, list) and len(one) == 1, "a list in, a list out"


def test_seed_decides_what_is_random() -> None:
    first, again, other = (visx.explain(model(), picture(), "smoothgrad", seed=s, samples=3).map for s in (0, 0, 1))
    assert np.array_equal(first, again) and not same(first, other, 1e-2)


def test_table_of_targets(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(picture()).save(tmp_path / name)
    (tmp_path / "targets.csv").write_text("image,target\na.png,rocket\nb.png,1\n")
    paths = [tmp_path / "a.png", str(tmp_path / "b.png")]
    assert [r.target for r in visx.explain(model(), paths, target=str(tmp_path / "targets.csv"))] == [4, 1]
    with pytest.raises(VisxError, match="no target for this image"):
        visx.explain(model(), picture(), target=str(tmp_path / "targets.csv"))


def test_inside_inference_mode() -> None:
    """Where a notebook has it on: inputs, wrapped copies and loaded weights are made outside it."""
    outside = module()
    for method in ("gradcam", "guided_backprop", "input_x_gradient"):
        expected = {p: visx.explain(model(), picture(), method, precision=p).map for p in ("fp32", "bf16")}
        with torch.inference_mode():
            for precision, values in expected.items():
                inside = visx.wrap(outside, size=16, labels=LABELS)
                assert np.array_equal(visx.explain(inside, picture(), method, precision=precision).map, values)
            loaded = visx.load_model()
            assert visx.explain(loaded, picture(), method).map.any()


def test_double_precision() -> None:
    double = visx.explain(visx.wrap(module(torch.float64), size=16), picture(), "backprop", target=0)
    assert double.map.dtype == np.float32
    assert same(double.map, visx.explain(model(), picture(), "backprop", target=0).map, 1e-4)


def test_half_precision_is_close() -> None:
    full, half = (visx.explain(model(), picture(), target=0, precision=p) for p in ("fp32", "bf16"))
    assert not np.array_equal(full.map, half.map) and same(half.map, full.map, 0.1)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ({"method": "gradcm"}, 2, "gradcam"),
        ({"method": "smoothgrad", "sample": 3}, 2, "samples"),
        ({"method": "smoothgrad", "samples": 0}, 2, "samples"),
        ({"method": "smoothgrad", "samples": "many"}, 2, "samples"),
        ({"layer": "feature"}, 2, "features"),
        ({"layer": "fc"}, 4, "not a feature map"),
        ({"target": "top6"}, 2, "5 classes"),
        ({"target": 5}, 2, "out of range"),
        ({"target": -1}, 2, "out of range"),
        ({"target": "espreso"}, 2, "espresso"),
        ({"target": "cup"}, 2, "label"),
        ({"precision": "fp8"}, 2, "fp32"),
        ({"score": "odds"}, 2, "logprob"),
        ({"batch_size": 0}, 2, "batch_size"),
    ],
)
def test_mistakes_are_answered(arguments: dict[str, object], code: int, says: str) -> None:
    mine = model()
    before = fingerprint(mine.module)
    with pytest.raises(VisxError) as caught:
        visx.explain(mine, picture(), **arguments)  # type: ignore[arg-type]
    assert caught.value.code == code and says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_unchanged(before, fingerprint(mine.module))


def test_label_may_be_exact_or_a_unique_part() -> None:
    assert [visx.explain(model(), picture(), target=t).target for t in ("espresso", "maker", "ROCK", 2)] == [2, 3, 4, 2]


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (lambda z: (z, z), 4, "tuple"),
        (lambda z: {"map": z[:, :, None, None].expand(-1, -1, 4, 4)}, 4, "dict"),
        (lambda z: z.argmax(1), 4, "shape"),
        (lambda z: z * float("nan"), 1, "not finite"),
        (lambda z: z.detach(), 4, "cuts the graph (detach)"),
    ],
)
def test_outputs_that_are_no_logits(answer: Callable[[Tensor], object], code: int, says: str) -> None:
    for method in ("gradcam", "backprop"):
        net = seeded(lambda: Wrapped(answer), dtype=torch.float32)
        with pytest.raises(VisxError) as caught:
            visx.explain(
                visx.wrap(net, size=16), picture(), method, layer="net.features" if method == "gradcam" else None
            )
        assert caught.value.code == code and says in str(caught.value)


def test_score_that_ignores_the_input_is_warned_about() -> None:
    net = seeded(lambda: Wrapped(lambda z: z * 0 + torch.arange(CLASSES)), dtype=torch.float32)
    result = visx.explain(visx.wrap(net, size=16), picture(), "backprop")
    assert not result.map.any() and "zero everywhere" in result.warnings[0]


def test_a_map_that_is_the_same_everywhere_is_warned_about() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None] * torch.arange(1.0, 4.0)

    result = visx.explain(visx.wrap(Shifted(), size=16), picture(), "backprop")
    assert result.map.std() < 1e-6 < result.map.max() and "same everywhere" in result.warnings[0]


@pytest.mark.parametrize(
    "image", [picture().astype(np.float32), picture()[None], "missing.png", np.zeros((0, 5, 3), np.uint8)]
)
def test_images_that_are_none(image: object) -> None:
    with pytest.raises(VisxError):
        visx.explain(model(), image)


def test_wrap_checks_what_it_is_given() -> None:
    with pytest.raises(VisxError, match="not the name"):
        visx.wrap("resnet18")  # type: ignore[arg-type]
    with pytest.raises(VisxError, match="labels for a model of 5 classes"):
        visx.explain(visx.wrap(module(), size=16, labels=["a", "b"]), picture())
    with pytest.raises(VisxError, match="interpolation"):
        visx.wrap(module(), interpolation="cubicc")


def test_wrap_checks_mean_and_std() -> None:
    for mean, std, said in [
        ((0.5,), (0.5,) * 3, "mean has 1 numbers and std 3"),
        ((), (), "one number a channel"),
        ((0.5,), (0,), "above 0"),
    ]:
        with pytest.raises(VisxError, match=said) as error:
            visx.wrap(module(), mean=mean, std=std)
        assert error.value.code == 2
    with pytest.raises(VisxError, match=r"\(H, W, C\) with 4 channels"):
        four = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        visx.explain(visx.wrap(four, size=16, mean=(0.5,) * 4, std=(0.5,) * 4), picture())


@pytest.mark.parametrize("method", ["backprop", "gradcam", "smoothgrad", "occlusion", "lime", "rise"])
def test_module_that_takes_grey(method: str) -> None:
    net = seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    grey = visx.wrap(net.float(), size=16, resize=16, mean=(0.4,), std=(0.2,))
    few = {"smoothgrad": {"samples": 2}, "lime": {"samples": 60}, "rise": {"masks": 20}}.get(method, {})
    result = visx.explain(grey, picture(height=16, width=16), method, target=1, **few)  # type: ignore[arg-type]
    assert result.map.shape == (16, 16) and result.overlay().shape == (16, 16, 3)
    level = np.asarray(Image.fromarray(picture(height=16, width=16)).convert("L"), np.float32) / 255
    logits = net(torch.from_numpy((level - 0.4) / 0.2)[None, None])
    assert result.probability == pytest.approx(float(logits.softmax(1)[0, 1]), rel=1e-5)
    if method == "backprop":
        assert result.channels.shape == (1, 16, 16)


def test_rectangular_input() -> None:
    result = visx.explain(visx.wrap(module(), size=(12, 20)), picture())
    assert result.map.shape == (12, 20) and result.overlay().shape == (40, 30, 3)


def test_module_without_parameters() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    result = visx.explain(visx.wrap(Means(), size=8), picture(), "backprop", target=1)
    assert same(result.channels[1], np.full((8, 8), 1 / 64), 1e-6) and not result.channels[0].any()


def test_frozen_and_shared_functions_survive() -> None:
    """Two models on one module, interleaved, do not disturb each other."""
    net = seeded(lambda: TwoConvs(nn.ReLU(inplace=True), torch.relu), dtype=torch.float32)
    a, b = visx.wrap(net, size=16), visx.wrap(net, size=16, mean=(0, 0, 0), std=(1, 1, 1))
    first = visx.explain(a, picture(), "guided_backprop", target=0).map
    visx.explain(b, picture(), "deconvnet", target=0)
    assert np.array_equal(visx.explain(a, picture(), "guided_backprop", target=0).map, first)
