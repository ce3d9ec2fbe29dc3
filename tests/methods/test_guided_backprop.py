"""Guided backpropagation and the deconvnet of a class: by hand, against captum, and what they refuse or warn about."""

from __future__ import annotations

import pytest
import torch

from nets import DenseLike, GapHead, VGGLike, WithoutReLU, images, seeded, two_convs
from oracles import Rule, answers, ask, backward_by_hand, deconv, guided, model_of, same
from visx import VisxError

X = images(2)
RULES = {"deconvnet": deconv, "guided_backprop": guided}


@pytest.mark.parametrize(("name", "rule"), RULES.items())
def test_by_hand_for_several_targets(name: str, rule: Rule) -> None:
    net = two_convs("F.relu in place")
    by_hand = torch.stack([backward_by_hand(net, X, t, rule) for t in (0, 3, 4)], 1)
    found = ask(name, net, X, (0, 3, 4))
    assert same(found.channels, by_hand)
    assert same(found.map, by_hand.abs().amax(2))


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(("name", "theirs"), [("deconvnet", "Deconvolution"), ("guided_backprop", "GuidedBackprop")])
@pytest.mark.parametrize(
    "net", [lambda: two_convs("nn.ReLU"), lambda: seeded(GapHead), lambda: seeded(lambda: VGGLike(12))]
)
def test_captum_agrees_on_modules(name: str, theirs: str, net) -> None:  # type: ignore[no-untyped-def]
    attr = pytest.importorskip("captum.attr")
    expected = getattr(attr, theirs)(_out_of_place(net())).attribute(X.clone().requires_grad_(), 3)
    assert same(ask(name, net(), X, (3,)).channels[:, 0], expected)


def _out_of_place(net: torch.nn.Module) -> torch.nn.Module:
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return net


@pytest.mark.parametrize("name", RULES)
def test_last_functional_relu_counts(name: str) -> None:
    """DenseNet's ending: the functional ReLU behind `features` obeys the rule too."""
    net = seeded(DenseLike)
    conv1, _, conv2, norm = net.features
    z1 = conv1(X)
    with torch.no_grad():
        z2 = norm(conv2(z1.relu()))
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)
        g2 = net.classifier.weight[1].view(1, -1, 1, 1).expand_as(z2) / (z2.shape[2] * z2.shape[3])
        g1 = torch.nn.functional.conv_transpose2d(RULES[name](g2, z2, 9e9) * scale, conv2.weight, padding=1)
        by_hand = torch.nn.functional.conv_transpose2d(RULES[name](g1, z1, 9e9), conv1.weight, padding=1)
    assert same(ask(name, net, X, (1,)).channels[:, 0], by_hand)


@pytest.mark.parametrize("name", RULES)
def test_without_relu_it_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(VisxError, match="no ReLU") as caught:
        answers(model_of(seeded(WithoutReLU)), name, X)
    assert caught.value.code == 4
    assert "gelu" in caught.value.message and "silu" in caught.value.message
    assert "backprop" in caught.value.hint and "guided_backprop" not in caught.value.hint


@pytest.mark.parametrize("name", RULES)
def test_other_activations_are_warned_about(name: str) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = two_convs()
            self.act = torch.nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(self.act(x))

    found = ask(name, Mixed(), X, (0, 1))
    assert all("gelu" in found.warned(b, t)[0] for b in range(2) for t in range(2))
    assert ask(name, two_convs(), X).warned(0, 0) == []
