"""The metrics against other people's: Quantus and torchcam where they measure the same quantity, and the published
definition of insertion and deletion written out. What they measure otherwise is in benchmarks/metrics_agreement.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metric_toys import SIDE
from visx.metrics import get_metric
from visx.metrics.common.imputing import impute
from visx.metrics.contract import Trial
from visx.ops.blur import gaussian_blur
from visx.params import parse

Make = Callable[..., Trial]
BOX = (3.0, 2.0, 9.0, 7.0)


def value(name: str, *asked: Any, **params: Any) -> float:
    metric = get_metric(name)
    found = metric.run(*asked, metric.params(**params))
    return float(found if metric.kind == "pair" else found.value)


class Net(nn.Module):
    """Three classes, float64, not linear; takes what precision it is given."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * SIDE * SIDE, 3)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


class Probabilities(nn.Module):
    """A network behind its softmax. A class, because Quantus takes a last `nn.Softmax` off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(8).normal(size=(SIDE, SIDE))


def quantus(name: str, net: nn.Module, x: Tensor, values: np.ndarray, mask: Any = None, **options: Any) -> Any:
    """A metric of Quantus on one image, nothing normalised."""
    peer = pytest.importorskip("quantus")
    metric = getattr(peer, name)(normalise=False, disable_warnings=True, display_progressbar=False, **options)
    return metric(
        net.eval(), x[None].numpy(), np.array([0]), values[None, None], mask, channel_first=True, softmax=False,
        device="cpu",
    )[0]  # fmt: skip


def inside(box: tuple[float, float, float, float]) -> np.ndarray:
    mask = np.zeros((1, 1, SIDE, SIDE))
    mask[..., int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 1
    return mask


def test_deletion_is_quantus_pixel_flipping_from_the_clean_picture(make_trial: Make, values: np.ndarray) -> None:
    """Theirs begins with the first pixels gone; ours with the clean picture, as RISE's curve does."""
    net, x = Net(1), torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    theirs = quantus("PixelFlipping", Probabilities(net), x, values, features_in_step=6, perturb_baseline=0.0)
    metric = get_metric("deletion")
    ours = metric.run(make_trial(net, x.double(), values), parse(metric.params, {"steps": 24}, "deletion"))
    assert [y for _, y in ours.curve[1:]] == pytest.approx(theirs, abs=1e-6)


def test_max_sensitivity_is_quantus(make_trial: Make, values: np.ndarray, pixels: Tensor) -> None:
    from visx.seeds import generator

    peer = pytest.importorskip("quantus")
    x = pixels.float()
    moved = [torch.rand(x.shape, generator=generator(11, "box", i)) for i in range(5)]
    shifts = iter([(0.02 * (2 * shift - 1)).numpy() for shift in moved])

    def shifted(arr: np.ndarray, **_: Any) -> np.ndarray:
        return arr + next(shifts).reshape(arr.shape)

    def cubes(model: Any, inputs: np.ndarray, targets: Any, **_: Any) -> np.ndarray:
        return np.asarray((inputs.astype(np.float64) ** 3).sum(1, keepdims=True))

    metric = peer.MaxSensitivity(
        nr_samples=5, perturb_func=shifted, normalise=False, disable_warnings=True, display_progressbar=False
    )
    clean = cubes(None, x[None].numpy(), 0)
    (theirs,) = metric(
        Net().eval(), x[None].numpy(), np.array([0]), clean, explain_func=cubes, channel_first=True, softmax=False,
        device="cpu",
    )  # fmt: skip
    trial = make_trial(Net(), x.double(), clean[0, 0], lambda inputs: (inputs**3).sum(1).numpy())
    assert value("max_sensitivity", trial, samples=5) == pytest.approx(theirs, rel=1e-5)


def test_energy_is_quantus_relevance_mass_of_the_positive_part(values: np.ndarray, pixels: Tensor) -> None:
    theirs = quantus("RelevanceMassAccuracy", Net(), pixels, np.maximum(values, 0), inside(BOX))
    assert value("energy", values, [BOX], 0) == pytest.approx(float(theirs), rel=1e-12)


def test_the_pointing_game_without_tolerance_is_quantus(values: np.ndarray, pixels: Tensor) -> None:
    for top in ((3, 4), (6, 8), (7, 4), (2, 9)):
        pointed = values.copy()
        pointed[top] = 9
        theirs = quantus("PointingGame", Net(), pixels, pointed, inside(BOX))
        assert value("pointing_game", pointed, [BOX], 0, tolerance=0) == float(theirs)


def test_top_k_with_a_box_as_one_map_is_quantus_intersection(values: np.ndarray, pixels: Tensor) -> None:
    mask = inside(BOX)
    count = int(mask.sum())
    theirs = quantus("TopKIntersection", Net(), pixels, values, mask, k=count)
    assert value("top_k", values, mask[0, 0], part=count / values.size) == pytest.approx(float(theirs))


def test_imputing_is_quantus_noisy_linear_imputation_without_its_noise(pixels: Tensor) -> None:
    peer = pytest.importorskip("quantus.functions.perturb_func")
    removed = np.random.default_rng(1).random((SIDE, SIDE)) < 0.7
    theirs = peer.noisy_linear_imputation(pixels.numpy(), np.nonzero(removed.ravel())[0], noise=0.0)
    assert impute(pixels.numpy(), removed) == pytest.approx(theirs, abs=1e-9)


def test_quantus_finds_completeness_where_the_gap_is_nothing(make_trial: Make) -> None:
    """Theirs asks whether two floats are equal: whole numbers, so that they can be."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    x = torch.arange(SIDE * SIDE, dtype=torch.float64).reshape(1, SIDE, SIDE)
    for factor in (1, 2):
        exact = x[0].numpy() * factor
        theirs = quantus("Completeness", Sum(), x, exact)
        gap = value("completeness", make_trial(Sum(), x, exact))
        assert (bool(theirs), gap) == (factor == 1, pytest.approx(factor - 1))


@torch.no_grad()
def published_area(net: nn.Module, start: Tensor, finish: Tensor, values: np.ndarray, step: int) -> float:
    """RISE's program, pixel by pixel (Petsiuk et al. 2018, algorithm 1): `step` pixels change over, are scored, and so on."""
    ranking = np.argsort(values.ravel())[::-1]
    picture, scores = start.clone(), []
    for i in range(-(-values.size // step) + 1):
        scores.append(float(net(picture[None]).softmax(1)[0, 0]))
        for pixel in ranking[step * i : step * (i + 1)]:
            row, column = divmod(int(pixel), SIDE)
            picture[:, row, column] = finish[:, row, column]
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


@pytest.mark.parametrize("step", [1, 12])
def test_insertion_and_deletion_are_the_published_definition(
    make_trial: Make, values: np.ndarray, pixels: Tensor, step: int
) -> None:
    net, steps = Net(), SIDE * SIDE // step
    trial = make_trial(net, pixels, values)
    blurred = gaussian_blur(pixels[None], 5.0)[0]
    expected = published_area(net, blurred, pixels, values, step)
    assert value("insertion", trial, steps=steps) == pytest.approx(expected, abs=1e-12)
    expected = published_area(net, pixels, torch.zeros_like(pixels), values, step)
    assert value("deletion", trial, steps=steps) == pytest.approx(expected, abs=1e-12)


def extractor(net: nn.Module, values: np.ndarray) -> Any:
    """What torchcam's metrics ask of a CAM method: here, a map that is given."""

    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield

    class Given(SimpleNamespace):
        def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
            return [torch.from_numpy(values)[None]]

    return Given(model=net.eval(), fuse_cams=lambda cams: cams[0], _hooks_off=nothing)


def test_insertion_and_deletion_are_torchcams(make_trial: Make, values: np.ndarray, pixels: Tensor) -> None:
    peer = pytest.importorskip("torchcam.metrics")
    net = Net()
    trial = make_trial(net, pixels, values)
    for name, baseline in (("deletion", None), ("insertion", lambda x: gaussian_blur(x, 5.0))):
        metric = peer.DeletionInsertionMetric(
            extractor(net, values), lambda logits: logits.softmax(1), steps=16, baseline=baseline
        )
        metric.update(pixels[None], 0)
        assert value(name, trial, steps=16) == pytest.approx(metric.summary()[f"{name}_auc"], abs=1e-6)


def test_average_drop_and_increase_are_torchcams(make_trial: Make, values: np.ndarray, pixels: Tensor) -> None:
    """Its maps come scaled to 0..1; ours scales a map's positive part so."""
    peer = pytest.importorskip("torchcam.metrics")
    net = Net()
    mask = np.maximum(values, 0) / values.max()
    for sign in (1, -1):
        trial = make_trial(net, sign * pixels, values)
        metric = peer.ClassificationMetric(extractor(net, mask), lambda logits: logits.softmax(1))
        metric.update(sign * pixels[None], 0)
        theirs = metric.summary()
        assert value("average_drop", trial) == pytest.approx(theirs["avg_drop"], abs=1e-6)
        assert value("increase", trial) == theirs["conf_increase"]
