"""Integrated gradients: completeness, quadrature written out, baselines, and refinement that counts its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nets import Probe, Steep, images, seeded, smooth, two_convs
from oracles import answers, ask, backward_by_hand, model_of, plain, same
from visx import VisxError
from visx.methods.integrated_gradients import GAP_WARNING

X = images(2)


def rises(net: nn.Module, x: Tensor, targets: tuple[int, ...], x0: Tensor | float = 0.0) -> Tensor:
    """S(x) - S(x0) for each image and target."""
    with torch.no_grad():
        return (net(x) - net(torch.zeros_like(x) + x0))[:, list(targets)]


def gap_of(found, b: int = 0, t: int = 0) -> float:  # type: ignore[no-untyped-def]
    return float(found.extra(b, t)["completeness_gap"])


def test_completeness_to_1e_6_with_gauss_legendre_and_worse_with_the_trapezoid() -> None:
    net = smooth()
    gauss, trapezoid = (ask("integrated_gradients", net, X, (0, 2), rule=r) for r in ("gauss_legendre", "trapezoid"))
    rise = rises(net, X, (0, 2))
    assert same(gauss.channels.sum((2, 3, 4)), rise, 1e-6)
    assert same(gauss.map.sum((-2, -1)), rise, 1e-6)
    off = [((f.map.sum((-2, -1)) - rise) / rise).abs() for f in (gauss, trapezoid)]
    assert bool((off[1] > 100 * off[0]).all()) and float(off[1].min()) > 1e-6
    for found, by_hand in zip((gauss, trapezoid), off, strict=True):
        reported = torch.tensor([[e["completeness_gap"] for e in row] for row in found.extras])
        assert torch.allclose(reported.double(), by_hand, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("rule", ["gauss_legendre", "trapezoid"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_quadrature_by_hand(rule: str, steps: int) -> None:
    """The sum over the path, with gradients by hand. The trapezoid has `steps` intervals, so steps + 1 nodes."""
    net = two_convs()
    if rule == "trapezoid":
        nodes = [(i / steps, (0.5 if i in (0, steps) else 1.0) / steps) for i in range(steps + 1)]
    else:
        nodes = [((t + 1) / 2, w / 2) for t, w in zip(*np.polynomial.legendre.leggauss(steps), strict=True)]
    slow = torch.stack([sum(w * backward_by_hand(net, t * X, c, plain) for t, w in nodes) * X for c in (1, 4)], 1)  # type: ignore[misc]
    found = ask("integrated_gradients", net, X, (1, 4), rule=rule, steps=steps, copies=4)
    assert same(found.channels, slow)
    assert found.extra(0, 0)["steps"] == len(nodes)


def test_captum_agrees_on_gauss_legendre() -> None:
    attr = pytest.importorskip("captum.attr")
    net = two_convs()
    theirs = attr.IntegratedGradients(net).attribute(X, 0.0, target=2, n_steps=20, method="gausslegendre")
    assert same(ask("integrated_gradients", net, X, (2,), steps=20).channels[:, 0], theirs, 1e-7)


def test_defaults() -> None:
    net = smooth()
    spelled = ask(
        "integrated_gradients", net, X, steps=50, rule="gauss_legendre", baseline="zero", tolerance=0.0, reduce="sum"
    )
    assert torch.equal(spelled.map, ask("integrated_gradients", net, X).map)


@pytest.mark.parametrize("baseline", ["zero", "grey", "black", "blur", "random"])
def test_every_baseline_is_complete(baseline: str) -> None:
    """IG sums to S(x) - S(x0), and S(x0) is the score that is reported."""
    net, mean, std = smooth(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = ask("integrated_gradients", net, X, (0, 3), baseline=baseline, mean=mean, std=std, trials=3)
    with torch.no_grad():
        clean = net(X)[:, [0, 3]]
    start = torch.tensor([[e["baseline_score"] for e in row] for row in found.extras], dtype=torch.float64)
    assert same(found.map.sum((-2, -1)), clean - start, 1e-6)
    pixel = {"grey": 0.5, "black": 0.0}.get(baseline)
    if pixel is not None:
        x0 = ((pixel - torch.tensor(mean)) / torch.tensor(std)).double().view(3, 1, 1)
        assert same(clean - start, rises(net, X, (0, 3), x0), 1e-6)
    if baseline == "zero":
        assert same(clean - start, rises(net, X, (0, 3)), 1e-6)


def test_blurred_baseline_keeps_a_flat_image() -> None:
    """A constant image equals its blur: the way is nothing, so the map is."""
    flat = torch.full((1, 3, 12, 12), 0.7, dtype=torch.float64)
    found = ask("integrated_gradients", smooth(), flat, baseline="blur")
    assert float(found.map.abs().max()) < 1e-6
    assert float(ask("integrated_gradients", smooth(), X, baseline="blur").map.abs().max()) > 1e-3


def test_random_baselines_are_averaged_and_seeded() -> None:
    """`trials` means are means over the same stream: 3 trials are a third of the sum of three single draws."""
    net = smooth()

    def mean_of(trials: int, seed: int = 4) -> Tensor:
        return ask("integrated_gradients", net, X, seeds=(seed, seed + 1), baseline="random", trials=trials).channels

    one, two, three = mean_of(1), mean_of(2), mean_of(3)
    assert torch.equal(three, mean_of(3)) and not same(three, mean_of(3, seed=9), 1e-2)
    second, third = 2 * two - one, 3 * three - 2 * two
    for a, b in ((one, second), (second, third), (one, third)):
        assert not same(a, b, 1e-2), "every trial draws a baseline of its own"
    first_image, second_image = (c for c in one)
    alone = ask("integrated_gradients", net, X[1:], seeds=(5,), baseline="random", trials=1).channels
    assert same(alone[0], second_image, 1e-9) and not same(first_image, second_image, 1e-2)


def test_random_baseline_is_uniform_pixels() -> None:
    """For S(x) = sum of w x the map is w (x - x0), which shows x0."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = ask("integrated_gradients", Sum(), images(1, 24), mean=mean, std=std, baseline="random", trials=1, steps=1)
    pixels = (images(1, 24)[0] - found.channels[0, 0]) * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(
        3, 1, 1
    )
    assert 0 <= float(pixels.min()) < 0.01 and 0.99 < float(pixels.max()) <= 1
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.03) and float(pixels.std()) == pytest.approx(
        12**-0.5, abs=0.02
    )


class Counted(nn.Module):
    """A network behind a probe that counts gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.probe, self.net = Probe(), net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.probe(x))


STEEP_X = images(1, 6).abs() + 1


@pytest.mark.parametrize("steps", [4, 8, 50])
@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-6])
def test_tolerance_is_met_and_gradients_are_kept(steps: int, tolerance: float) -> None:
    net = Counted(seeded(Steep))
    found = ask("integrated_gradients", net, STEEP_X, steps=steps, tolerance=tolerance)
    assert gap_of(found) <= tolerance
    assert found.map.sum().item() == pytest.approx(float(rises(net, STEEP_X, (0,))), rel=1.1 * tolerance)
    assert sum(net.probe.backwards) == found.extra(0, 0)["steps"] <= 2000
    assert bool(found.warned(0, 0)) == (gap_of(found) > GAP_WARNING)


def test_parameters_that_do_not_go_together_are_refused() -> None:
    for params in ({"tolerance": 0.01, "rule": "trapezoid"}, {"tolerance": 0.01, "max_steps": 3}, {"tolerance": 1.0}):
        with pytest.raises(VisxError) as caught:
            ask("integrated_gradients", smooth(), X, **params)
        assert caught.value.code == 2


def test_refining_beats_as_many_even_steps() -> None:
    """Where the path is steep, refining spends fewer gradients than an even rule needs for the same gap."""
    net = seeded(Steep)
    refined = ask("integrated_gradients", net, STEEP_X, steps=8, tolerance=0.01)
    spent = int(refined.extra(0, 0)["steps"])
    assert spent < 60 and gap_of(refined) <= 0.01
    assert gap_of(ask("integrated_gradients", net, STEEP_X, steps=8)) > 0.3
    assert gap_of(ask("integrated_gradients", net, STEEP_X, steps=spent, rule="trapezoid")) > gap_of(refined)


@pytest.mark.parametrize("most", [4, 5, 16, 30, 57])
def test_refining_stays_within_max_steps_and_says_when_it_missed(most: int) -> None:
    net = Counted(seeded(Steep))
    found = ask("integrated_gradients", net, STEEP_X, steps=8, tolerance=1e-9, max_steps=most)
    assert sum(net.probe.backwards) == found.extra(0, 0)["steps"] <= most
    assert found.extra(0, 0)["steps"] > most - 8  # what is left would not halve one panel more
    assert gap_of(found) > 1e-9
    (warning,) = found.warned(0, 0)
    assert "tolerance" in warning and "max_steps" in warning


def test_refining_stays_within_max_steps_where_every_panel_is_off() -> None:
    """A path that waves all along: there is never enough to halve all panels."""

    class Wave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.mean((1, 2, 3))
            return torch.stack([torch.sin(97 * z), -z], 1)

    for most in (30, 50, 100):
        net = Counted(Wave())
        found = ask("integrated_gradients", net, STEEP_X, steps=20, tolerance=1e-9, max_steps=most)
        assert most - 8 < sum(net.probe.backwards) == found.extra(0, 0)["steps"] <= most


def test_several_targets_refine_until_all_are_met() -> None:
    net = Counted(seeded(Steep))
    found = ask("integrated_gradients", net, STEEP_X, (0, 1), steps=8, tolerance=1e-3)
    assert gap_of(found, t=0) <= 1e-3 and gap_of(found, t=1) <= 1e-3
    assert sum(net.probe.backwards) == 2 * found.extra(0, 1)["steps"]


@pytest.mark.parametrize("rule", ["gauss_legendre", "trapezoid"])
def test_gradients_are_those_reported_without_tolerance(rule: str) -> None:
    net = Counted(smooth())
    found = ask("integrated_gradients", net, X[:1], steps=13, rule=rule, copies=5)
    assert sum(net.probe.backwards) == found.extra(0, 0)["steps"] == 13 + (rule == "trapezoid")
    assert max(net.probe.backwards) <= 5


def test_warning_above_five_percent_alone() -> None:
    net = seeded(Steep)
    seen = set()
    for steps in (2, 5, 20, 40, 60, 200):
        found = ask("integrated_gradients", net, STEEP_X, steps=steps)
        warned = bool(found.warned(0, 0))
        assert warned == (gap_of(found) > GAP_WARNING) and GAP_WARNING == 0.05
        seen.add(warned)
    assert seen == {True, False}


def test_gap_and_warning_reach_the_answer() -> None:
    (image,) = answers(model_of(seeded(Steep), 6), "integrated_gradients", STEEP_X, "0", steps=2)
    (answer,) = image  # type: ignore[misc]
    assert answer.extras["completeness_gap"] > 0.05 and "completeness gap" in answer.warnings[0]
    assert answer.extras.keys() == {"completeness_gap", "steps", "baseline_score"}
