"""Closed forms on a linear network, where every gradient method has one answer: S(x) = w x + b."""

from __future__ import annotations

import pytest
import torch

from nets import Linear, images, seeded
from oracles import ask, same

X = images(2)
NET: Linear = seeded(Linear)  # type: ignore[assignment]
W = torch.stack([NET.weight(t) for t in (1, 4)])  # (T, 3, 12, 12)


def test_backprop_is_w() -> None:
    assert same(ask("backprop", NET, X, (1, 4)).channels, W.expand(2, -1, -1, -1, -1))


@pytest.mark.parametrize("params", [{}, {"spread": 0.6, "samples": 3}, {"base": "integrated_gradients", "samples": 2}])
def test_smoothgrad_is_the_base_s_mean(params: dict[str, object]) -> None:
    """For the gradient that is w whatever the noise; for w x it is w times the mean copy, near w x."""
    found = ask("smoothgrad", NET, X, (1, 4), **params)
    if "base" not in params:
        assert same(found.channels, W.expand(2, -1, -1, -1, -1))
    else:
        assert not same(found.channels, X[:, None] * W, 1e-3) and same(found.channels, X[:, None] * W, 0.5)


def test_input_x_gradient_is_w_x_and_adds_up_to_the_score_without_bias() -> None:
    found = ask("input_x_gradient", NET, X, (1, 4))
    assert same(found.channels, X[:, None] * W)
    scores = NET(X)[:, [1, 4]] - NET.fc.bias[[1, 4]]
    assert same(found.map.sum((-2, -1)), scores)


@pytest.mark.parametrize("rule", ["gauss_legendre", "trapezoid"])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("baseline", "start"), [("zero", 0.0), ("grey", 0.5), ("black", 0.0)])
def test_integrated_gradients_is_w_times_the_way(rule: str, steps: int, baseline: str, start: float) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = ask(
        "integrated_gradients", NET, X, (1, 4), mean=mean, std=std, rule=rule, steps=steps, baseline=baseline
    )  # fmt: skip
    x0 = torch.zeros(3, 1, 1, dtype=torch.float64)
    if baseline != "zero":
        x0 = ((start - torch.tensor(mean)) / torch.tensor(std)).double().view(3, 1, 1)
    assert same(found.channels, (X - x0)[:, None] * W, 1e-6)
    assert found.extras is not None and max(e["completeness_gap"] for row in found.extras for e in row) < 1e-6


@pytest.mark.parametrize("name", ["deconvnet", "guided_backprop"])
def test_rules_refuse_a_network_without_relu(name: str) -> None:
    from visx import VisxError

    with pytest.raises(VisxError, match="no ReLU") as caught:
        ask(name, NET, X)
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("reduce", "by_hand"),
    [
        ("max_abs", lambda c: torch.maximum(torch.maximum(c[..., 0, :, :].abs(), c[..., 1, :, :].abs()), c[..., 2, :, :].abs())),
        ("mean", lambda c: (c[..., 0, :, :] + c[..., 1, :, :] + c[..., 2, :, :]) / 3),
        ("sum", lambda c: c[..., 0, :, :] + c[..., 1, :, :] + c[..., 2, :, :]),
        ("l2", lambda c: (c[..., 0, :, :] ** 2 + c[..., 1, :, :] ** 2 + c[..., 2, :, :] ** 2) ** 0.5),
    ],
)  # fmt: skip
def test_reductions(reduce: str, by_hand) -> None:  # type: ignore[no-untyped-def]
    for name in ("backprop", "input_x_gradient", "integrated_gradients", "smoothgrad"):
        found = ask(name, NET, X, (1, 4), reduce=reduce)
        assert found.channels is not None
        assert same(found.map, by_hand(found.channels), 1e-12)


def test_default_reductions() -> None:
    for name in ("backprop", "smoothgrad"):
        assert same(ask(name, NET, X, (1,)).map, W[:1].abs().amax(1).expand(2, 1, -1, -1))
    for name in ("input_x_gradient", "integrated_gradients"):
        assert same(ask(name, NET, X, (1,)).map, (X[:, None] * W[:1]).sum(2))
