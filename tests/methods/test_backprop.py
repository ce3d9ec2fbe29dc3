"""`backprop` and `input_x_gradient` against a backward pass by hand, finite differences and captum."""

from __future__ import annotations

import pytest
import torch

from nets import Probed, images, seeded, smooth, two_convs
from oracles import answers, ask, backward_by_hand, model_of, plain, same

X = images(2)


def test_backprop_by_hand() -> None:
    net = two_convs()
    by_hand = torch.stack([backward_by_hand(net, X, t, plain) for t in (0, 3, 4)], 1)
    found = ask("backprop", net, X, (0, 3, 4))
    assert same(found.channels, by_hand)
    assert same(found.map, by_hand.abs().amax(2))


@pytest.mark.parametrize("kind", ["logit", "prob", "logprob"])
def test_backprop_is_the_slope_of_the_score(kind: str) -> None:
    """Central differences along random directions."""
    net, step = smooth(), 1e-5
    found = ask("backprop", net, X, (2,), kind=kind).channels

    def score(x: torch.Tensor) -> torch.Tensor:
        logits = net(x)
        return {"logit": logits, "prob": logits.softmax(1), "logprob": logits.softmax(1).log()}[kind][:, 2]

    for seed in range(5):
        way = images(2, seed=10 + seed)
        slope = (score(X + step * way) - score(X - step * way)) / (2 * step)
        assert same((found[:, 0] * way).sum((1, 2, 3)), slope, 1e-6)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("target", [0, 3])
def test_captum_agrees(target: int) -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = two_convs(), X.clone()
    assert same(
        ask("backprop", net, x, (target,)).channels[:, 0], attr.Saliency(net).attribute(x.clone(), target, abs=False)
    )
    theirs = attr.InputXGradient(net).attribute(x.clone(), target)
    assert same(ask("input_x_gradient", net, x, (target,)).channels[:, 0], theirs)
    assert same(ask("input_x_gradient", net, x, (target,)).map[:, 0], theirs.sum(1))


@pytest.mark.parametrize("name", ["backprop", "deconvnet", "guided_backprop", "input_x_gradient"])
@pytest.mark.parametrize("targets", [1, 3])
def test_one_forward_and_one_backward_a_target(name: str, targets: int) -> None:
    net = seeded(Probed)
    model = model_of(net)
    _ = model.anatomy
    net.entrance.forwards.clear()
    answers(model, name, X, f"top{targets}")
    assert net.entrance.forwards == [2] and net.entrance.backwards == [2] * targets


def test_input_worked_on_in_place() -> None:
    """A network whose first act is in place on its input still gets its gradient, and the input stays."""

    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = two_convs("F.relu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.mul_(2).relu_())

    x = X.clone()
    by_hand = 2 * torch.where(x > 0, backward_by_hand(two_convs(), (2 * x).relu(), 1, plain), 0.0)
    assert same(ask("backprop", InPlace(), x, (1,)).channels[:, 0], by_hand)
    assert torch.equal(x, X)
