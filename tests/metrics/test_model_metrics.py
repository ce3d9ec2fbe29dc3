"""Metrics of one map with the model: closed forms, definitions written out, and how much is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metric_toys import SIDE, Linear, Mean
from visx.metrics import get_metric
from visx.metrics.common.imputing import impute
from visx.metrics.contract import Measured, Trial
from visx.ops.blur import gaussian_blur

Make = Callable[..., Trial]


def measure(name: str, trial: Trial, **params: Any) -> Measured:
    metric = get_metric(name)
    found: Measured = metric.run(trial, metric.params(**params))
    return found


def by_hand(start: np.ndarray, end: np.ndarray, ranking: np.ndarray, steps: int) -> tuple[list[float], float]:
    """The curve of a model whose probability is the mean of the pixels, pixel by pixel."""
    picture, curve, done = start.copy(), [float(start.mean())], 0
    for i in range(1, steps + 1):
        until = round(i * ranking.size / steps)
        for pixel in ranking[done:until]:
            picture[:, pixel // SIDE, pixel % SIDE] = end[:, pixel // SIDE, pixel % SIDE]
        done = until
        curve.append(float(picture.mean()))
    return curve, sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / steps


@pytest.mark.parametrize("steps", [SIDE * SIDE, 9])
def test_insertion_and_deletion_of_a_model_that_averages_pixels(make_trial: Make, pixels: Tensor, steps: int) -> None:
    values = pixels.sum(0).numpy()
    ranking = np.argsort(-values.ravel())
    trial = make_trial(Mean(), pixels, values)
    x, blurred = pixels.numpy(), gaussian_blur(pixels[None], 5.0)[0].numpy()
    for name, start, end in (("deletion", x, np.zeros_like(x)), ("insertion", blurred, x)):
        curve, area = by_hand(start, end, ranking, steps)
        found = measure(name, trial, steps=steps)
        assert found.value == pytest.approx(area, abs=1e-9)
        assert found.curve is not None
        assert [y for _, y in found.curve] == pytest.approx(curve, abs=1e-9)
        assert [part for part, _ in found.curve] == pytest.approx(np.linspace(0, 1, steps + 1), abs=0.5 / values.size)


def test_the_best_ranking_deletes_fastest_and_the_worst_slowest(make_trial: Make, pixels: Tensor) -> None:
    values = pixels.sum(0).numpy()
    best, worst = (measure("deletion", make_trial(Mean(), pixels, v), steps=20).value for v in (values, -values))
    random = measure("deletion", make_trial(Mean(), pixels, np.zeros_like(values)), steps=20).value
    assert best < random < worst


def test_a_constant_map_ranks_like_chance(make_trial: Make) -> None:
    """In expectation the curve of a random ranking is the straight line, whatever lies where in the picture."""
    x = torch.zeros(3, SIDE, SIDE, dtype=torch.float64)
    x[:, : SIDE // 2] = 0.9  # row by row, everything would be gone halfway
    areas = [
        measure("deletion", make_trial(Mean(), x, np.ones((SIDE, SIDE)), seed=seed), steps=24).value
        for seed in range(60)
    ]
    assert np.mean(areas) == pytest.approx(0.225, abs=4 * np.std(areas) / np.sqrt(len(areas)))
    assert len(set(areas)) > 50


def test_every_copy_is_scored_once_in_full_batches(make_trial: Make, pixels: Tensor) -> None:
    trial = make_trial(Mean(), pixels, pixels.sum(0).numpy(), batch=16)
    for name in ("insertion", "deletion"):
        measure(name, trial, steps=50)
    assert trial.score.forward.copies == 2 * 51  # type: ignore[attr-defined]
    assert trial.score.forward.calls == 2 * 4  # type: ignore[attr-defined]


def test_batches_do_not_change_a_value(make_trial: Make, pixels: Tensor) -> None:
    values = pixels.sum(0).numpy()
    for name in ("insertion", "deletion", "road", "infidelity"):
        one, many = (measure(name, make_trial(Mean(), pixels, values, batch=b)).value for b in (1, 64))
        assert one == pytest.approx(many, abs=1e-12)


def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours() -> None:
    random = np.random.default_rng(0)
    x, removed = random.normal(size=(2, 7, 9)), random.random((7, 9)) < 0.6
    filled = impute(x, removed)
    assert (filled[:, ~removed] == x[:, ~removed]).all()
    for row, column in zip(*np.nonzero(removed), strict=True):
        total, weights = np.zeros(2), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) != (0, 0) and 0 <= row + dy < 7 and 0 <= column + dx < 9:
                    weight = 1 / 12 if dy and dx else 1 / 6
                    total, weights = total + weight * filled[:, row + dy, column + dx], weights + weight
        assert filled[:, row, column] == pytest.approx(total / weights, abs=1e-10)
    assert impute(np.ones((1, 5, 5)), np.eye(5, dtype=bool)) == pytest.approx(np.ones((1, 5, 5)))


def test_road_by_hand(make_trial: Make) -> None:
    """A bright spot on dark ground: imputing it loses the probability, imputing the ground loses nothing."""
    x = torch.full((3, SIDE, SIDE), 0.1, dtype=torch.float64)
    x[:, 4:8, 4:8] = 0.9
    values = x[0].numpy()
    found = measure("road", make_trial(Mean(), x, values), noise=0, steps=1)
    assert found.details["parts"] == [0.5]
    assert found.details["morf"][0] == pytest.approx(0.1, abs=1e-9)
    assert found.details["lerf"][0] > 0.18
    assert found.value == pytest.approx((found.details["lerf"][0] - 0.1) / 2)
    assert measure("road", make_trial(Mean(), x, -values), noise=0, steps=1).value < 0


def test_roads_noise_falls_on_imputed_pixels_alone(make_trial: Make, pixels: Tensor) -> None:
    seen: list[Tensor] = []

    class Watched(Mean):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    values = pixels.sum(0).numpy()
    measure("road", make_trial(Watched(), pixels, values), noise=0.05, steps=3)
    copies, ranks = torch.cat(seen), np.argsort(np.argsort(-values.ravel())).reshape(values.shape)
    for number, copy in enumerate(copies):
        count = round((number % 3 + 1) / 4 * values.size)
        removed = ranks < count if number < 3 else ranks >= values.size - count
        assert (copy[:, ~removed] == pixels[:, ~removed]).all()
        noise = copy.numpy()[:, removed] - impute(pixels.numpy(), removed)[:, removed]
        assert noise.std() == pytest.approx(0.05, rel=0.25)


def test_average_drop_and_increase_by_hand(make_trial: Make, pixels: Tensor) -> None:
    values = np.random.default_rng(2).normal(size=(SIDE, SIDE))
    mask = np.maximum(values, 0)
    mask = (mask - mask.min()) / (mask.max() - mask.min())
    clean, masked = float(pixels.mean()), float((pixels.numpy() * mask).mean())
    trial = make_trial(Mean(), pixels, values)
    assert measure("average_drop", trial).value == pytest.approx((clean - masked) / clean, abs=1e-12)
    assert measure("increase", trial).value == 0
    negative = make_trial(Mean(), pixels, values, target=1)
    assert measure("average_drop", negative).value == 0
    assert measure("increase", negative).value == 1
    high = np.random.default_rng(3).uniform(5, 6, size=(SIDE, SIDE))
    masked = float((pixels.numpy() * (high - high.min()) / (high.max() - high.min())).mean())
    found = measure("average_drop", make_trial(Mean(), pixels, high)).value
    assert found == pytest.approx((clean - masked) / clean, abs=1e-12)
    everything = make_trial(Mean(), pixels, np.full((SIDE, SIDE), 3.0))
    assert measure("average_drop", everything).value == 0
    nothing = make_trial(Mean(), pixels, np.full((SIDE, SIDE), -3.0))
    assert measure("average_drop", nothing).value == pytest.approx(1, abs=1e-9)


def test_completeness_of_a_linear_model(make_trial: Make, pixels: Tensor) -> None:
    net = Linear()
    exact = (pixels * net.weight[0]).sum(0).detach().numpy()
    assert measure("completeness", make_trial(net, pixels, exact)).value == pytest.approx(0, abs=1e-12)
    assert measure("completeness", make_trial(net, pixels, 3 * exact)).value == pytest.approx(2, abs=1e-9)
    assert measure("completeness", make_trial(net, pixels, exact, target=1)).value > 0.01


def test_infidelity_of_a_linear_model(make_trial: Make, pixels: Tensor) -> None:
    net = Linear()
    exact = net.weight[0].sum(0).detach().numpy()
    assert measure("infidelity", make_trial(net, pixels, exact)).value == pytest.approx(0, abs=1e-9)
    assert measure("infidelity", make_trial(net, pixels, 5 * exact)).value == pytest.approx(0, abs=1e-9)
    # without the best factor: E[(I.M - 5 I.M)^2] = 16 E[(I.M)^2] = 16 noise^2 |M|^2
    found = measure("infidelity", make_trial(net, pixels, 5 * exact), rescale=False, samples=4000, noise=0.1)
    assert found.value == pytest.approx(16 * 0.01 * float((exact**2).sum()), rel=0.1)
    assert measure("infidelity", make_trial(net, pixels, np.zeros_like(exact))).value > 0.1


def test_max_sensitivity_by_hand(make_trial: Make, pixels: Tensor) -> None:
    seen: list[Tensor] = []

    def explain(x: Tensor) -> np.ndarray:
        seen.append(x)
        return x.sum(1).numpy()

    values = pixels.sum(0).numpy()
    found = measure("max_sensitivity", make_trial(Linear(), pixels, values, explain), samples=9, radius=0.1)
    shifts = torch.cat(seen) - pixels
    assert len(shifts) == 9
    assert 0.095 < float(shifts.abs().max()) <= 0.1
    assert float(shifts.min()) < -0.09
    far = shifts.sum(1).flatten(1).norm(dim=1).max() / np.linalg.norm(values)
    assert found.value == pytest.approx(float(far), abs=1e-12)
    still = make_trial(Linear(), pixels, values, lambda x: np.stack([values] * len(x)))
    assert measure("max_sensitivity", still).value == 0


def test_infidelity_and_sensitivity_agree_with_captum(make_trial: Make, pixels: Tensor) -> None:
    captum = pytest.importorskip("captum.metrics")
    from visx.seeds import generator, normal

    net, kind = Linear(), "prob"
    x = pixels.requires_grad_()
    (grads,) = torch.autograd.grad(net(x[None]).softmax(1)[0, 0], x)
    values = grads.sum(0).numpy() * 1.7
    trial = make_trial(net, pixels.detach(), values, kind=kind)
    noise = 0.2 * normal(trial.seed, (1, SIDE, SIDE), 0, 8).double().expand(8, 3, SIDE, SIDE)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return noise, inputs - noise

    spread = torch.from_numpy(values)[None, None].expand(1, 3, SIDE, SIDE)

    def forward(inputs: Tensor) -> Tensor:
        return net(inputs).softmax(1)[:, 0]

    for rescale in (True, False):
        theirs = captum.infidelity(
            forward, perturb, pixels.detach()[None], spread / 3, n_perturb_samples=8, normalize=rescale
        )
        ours = measure("infidelity", trial, samples=8, rescale=rescale).value
        assert ours == pytest.approx(float(theirs), rel=1e-6)

    shifts = torch.stack([torch.rand(3, SIDE, SIDE, generator=generator(trial.seed, "box", i)) for i in range(6)])
    moved = (0.02 * (2 * shifts - 1)).double()

    def explain(inputs: Tensor) -> np.ndarray:
        return (inputs**3).sum(1).detach().numpy()

    def cubes(inputs: tuple[Tensor]) -> tuple[Tensor]:  # captum mistakes the channel for the batch in a bare tensor
        return ((inputs[0] ** 3).sum(1, keepdim=True),)

    trial = make_trial(net, pixels.detach(), explain(pixels[None])[0], explain)
    theirs = captum.sensitivity_max(
        cubes,
        pixels.detach()[None],
        perturb_func=lambda inputs: (pixels.detach() + moved,),
        n_perturb_samples=6,
    )
    assert measure("max_sensitivity", trial, samples=6).value == pytest.approx(float(theirs), rel=1e-6)
