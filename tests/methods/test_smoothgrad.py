"""SmoothGrad against the loop that its definition describes."""

from __future__ import annotations

import pytest
import torch

from nets import images, smooth, two_convs
from oracles import ask, backward_by_hand, guided, plain, same
from visx.seeds import generator

X = images(2, seed=3)


def noise(seed: int, copy: int) -> torch.Tensor:
    return torch.randn((3, 12, 12), generator=generator(seed, copy)).double()


@pytest.mark.parametrize(("base", "rule"), [("backprop", plain), ("guided_backprop", guided)])
@pytest.mark.parametrize(("samples", "spread"), [(50, 0.15), (7, 0.5)])
def test_mean_of_gradients_over_noisy_copies(base: str, rule, samples: int, spread: float) -> None:  # type: ignore[no-untyped-def]
    net, seeds = two_convs(), (5, 11)
    slow = torch.zeros(2, 2, 3, 12, 12, dtype=torch.float64)
    for b in range(2):
        sigma = spread * (X[b].max() - X[b].min())
        for i in range(samples):
            for t, target in enumerate((0, 3)):
                copy = X[b : b + 1] + sigma * noise(seeds[b], i)
                slow[b, t] += backward_by_hand(net, copy, target, rule)[0] / samples
    found = ask("smoothgrad", net, X, (0, 3), seeds=seeds, samples=samples, spread=spread, base=base, copies=4)
    assert same(found.channels, slow)
    assert same(found.map, slow.abs().amax(2))


def test_defaults_are_50_copies_of_15_percent() -> None:
    net = two_convs()
    spelled = ask("smoothgrad", net, X, samples=50, spread=0.15, base="backprop", reduce="max_abs")
    assert torch.equal(ask("smoothgrad", net, X).map, spelled.map)


def test_noise_has_the_deviation_it_says() -> None:
    """The copies' own mean square, through a network whose gradient is its input."""

    class HalfSquare(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.square().sum((1, 2, 3)) / 2, x.sum((1, 2, 3))], 1)

    found = ask("smoothgrad", HalfSquare(), X, samples=400, spread=0.2).channels[:, 0]
    for b in range(2):
        sigma = 0.2 * (X[b].max() - X[b].min())
        assert float((found[b] - X[b]).std()) == pytest.approx(float(sigma) / 400**0.5, rel=0.15)


def test_no_noise_is_the_base() -> None:
    net = smooth()
    assert same(
        ask("smoothgrad", net, X, (1, 2), spread=0, samples=2).channels, ask("backprop", net, X, (1, 2)).channels
    )


@pytest.mark.parametrize("base", ["gradcam", "guided_gradcam", "integrated_gradients", "input_x_gradient", "deconvnet"])
def test_any_base_without_noise_is_itself(base: str) -> None:
    net = two_convs()
    found = ask("smoothgrad", net, X, (1, 2), spread=0, samples=2, base=base, layer="conv2", reduce="sum")
    expected = ask(base, net, X, (1, 2), layer="conv2")
    if base == "gradcam":
        assert found.channels is None and same(found.map, expected.map)
    else:
        assert same(found.channels, expected.channels)


def test_seeds_differ_and_repeat() -> None:
    net = smooth()
    one, other = (ask("smoothgrad", net, X, seeds=(s, s), samples=4).channels for s in (1, 2))
    assert not same(one, other, 1e-2)
    assert same(ask("smoothgrad", net, X, seeds=(1, 1), samples=4, copies=3).channels, one, 1e-12)
