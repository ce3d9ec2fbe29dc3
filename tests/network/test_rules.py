"""ReLU rules against a backward pass written by hand, for every way to write a ReLU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets import RELU6S, RELUS, Activation, TwoConvs, images, seeded, two_convs
from oracles import Rule, ask, backward_by_hand, column_scores, deconv, guided, plain, same
from visx import VisxError
from visx.network import rules
from visx.network.network import Network

METHODS = {"backprop": plain, "deconvnet": deconv, "guided_backprop": guided}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spelling", [*RELUS, *RELU6S])
def test_rule_reaches_every_spelling_of_relu(name: str, spelling: str) -> None:
    net, x, top = two_convs(spelling), 9 * images(3), 6.0 if spelling in RELU6S else math.inf
    by_hand = torch.stack([backward_by_hand(net, x, t, METHODS[name], top) for t in (0, 3)], 1)
    if top == 6 and name != "deconvnet":  # whose rule looks at no forward value
        assert not same(by_hand[:, 0], backward_by_hand(net, x, 0, METHODS[name]), 1e-3), "the ceiling is not reached"
    assert same(ask(name, net, x, (0, 3)).channels, by_hand)


@pytest.mark.parametrize(("name", "rule"), [("deconvnet", deconv), ("guided_backprop", guided)])
def test_rules_differ_from_the_plain_gradient(name: str, rule: Rule) -> None:
    net, x = two_convs(), images()
    assert not same(ask(name, net, x).channels, ask("backprop", net, x).channels, 0.05)


@pytest.mark.parametrize("rule", ["guided", "deconv"])
def test_output_of_a_ceiling_may_be_changed_in_place(rule: str) -> None:
    """relu6(x + 3).div_(6), the hard sigmoid of several libraries: plain autograd allows it, so the rules must."""
    net, x = seeded(lambda: TwoConvs(lambda z: z * F.relu6(z + 3).div_(6), lambda z: z.clamp_(min=0).mul_(2))), images()
    found = Network(net).input_gradients(x, column_scores(torch.zeros(2, 1, dtype=torch.int64)), rule)  # type: ignore[arg-type]
    assert found.grads.isfinite().all() and found.grads.abs().max() > 0


@pytest.mark.parametrize("rule", ["guided", "deconv"])
def test_view_is_rectified_in_place(rule: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.conv(x)
            F.relu(z[:, :3], inplace=True)
            return z.mean((2, 3))

    net, x = seeded(Half), images(1)
    fixed = column_scores(torch.tensor([[1, 5]]))
    found = Network(net).input_gradients(x, fixed, rule).grads  # type: ignore[arg-type]
    z = F.conv2d(x, net.conv.weight, net.conv.bias)
    for row, channel in enumerate((1, 5)):
        g = torch.zeros_like(z)
        g[:, channel] = 1 / (z.shape[2] * z.shape[3])
        if channel == 1:  # the rectified half; the seed is positive everywhere, so the deconvnet passes all of it
            g = guided(g, z, math.inf) if rule == "guided" else g
        assert same(found[:, row], F.conv_transpose2d(g, net.conv.weight))


@pytest.mark.parametrize(
    "act",
    [
        F.hardtanh,
        lambda z: z.clamp(-1, 1),
        lambda z: z.clamp(max=1),
        lambda z: z.clamp_min(0.1),
        lambda z: z.clamp(1),
        lambda z: F.threshold(z, 0.1, 0),
    ],
)
def test_other_bounds_are_no_relu(act: Activation) -> None:
    """A floor other than 0 keeps its plain gradient: alone it is refused, beside a ReLU it is left alone."""
    fixed, x = column_scores(torch.zeros(2, 1, dtype=torch.int64)), images(2)
    with pytest.raises(VisxError, match="no ReLU"):
        Network(seeded(lambda: TwoConvs(act, act))).input_gradients(x, fixed, "guided")
    net = seeded(lambda: TwoConvs(act, nn.ReLU()))
    found = ask("guided_backprop", net, x).channels
    z1 = net.conv1(x).detach().requires_grad_()
    z2 = net.conv2(act(z1))
    g2 = net.fc.weight[0].view(1, -1, 1, 1).expand_as(z2) / (z2.shape[2] * z2.shape[3])
    (g1,) = torch.autograd.grad(z2, z1, guided(g2, z2, math.inf))
    assert same(found[:, 0], F.conv_transpose2d(g1, net.conv1.weight, padding=1))


class _Nowhere(torch.autograd.Function):
    """A sum that sends no gradient back: None, not zeros."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.sum((2, 3))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return None


class _Own(torch.autograd.Function):
    """A ReLU as a library may write its own: autograd records it under that name, whatever is called inside."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return F.relu(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * (ctx.saved_tensors[0] > 0)


@pytest.mark.parametrize("rule", ["guided", "deconv"])
def test_relu_that_no_gradient_reaches(rule: str) -> None:
    class Net(TwoConvs):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.conv1(x)
            return super().forward(x) + 0 * _Nowhere.apply(F.relu(z))[:, :1]

    fixed, x = column_scores(torch.zeros(2, 1, dtype=torch.int64)), images(2)
    with_it = Network(seeded(lambda: Net(nn.ReLU(), nn.ReLU()))).input_gradients(x, fixed, rule)  # type: ignore[arg-type]
    without = Network(two_convs()).input_gradients(x, fixed, rule)  # type: ignore[arg-type]
    assert same(with_it.grads, without.grads)


@pytest.mark.parametrize(
    ("act", "name"), [(nn.CELU(), "celu"), (nn.RReLU().eval(), "rrelu"), (nn.SELU(), "elu"), (_Own.apply, "_Own")]
)
def test_what_no_rule_reaches_is_named(act: Activation, name: str) -> None:
    """An autograd function of one's own may be a ReLU: alone it is refused, beside a ReLU it is warned about."""
    fixed, x = column_scores(torch.zeros(2, 1, dtype=torch.int64)), images(2)
    with pytest.raises(VisxError, match=f"no ReLU.*uses {name}"):
        Network(seeded(lambda: TwoConvs(act, act))).input_gradients(x, fixed, "guided")
    found = Network(seeded(lambda: TwoConvs(act, nn.ReLU()))).input_gradients(x, fixed, "guided")
    assert dict(found.other_activations) == {name: 1}


def test_custom_functions_are_named_to_the_deconvnet_too() -> None:
    fixed, x = column_scores(torch.zeros(2, 1, dtype=torch.int64)), images(2)
    found = Network(seeded(lambda: TwoConvs(_Own.apply, nn.ReLU()))).input_gradients(x, fixed, "deconv")
    assert dict(found.other_activations) == {"_Own": 1}


def test_a_relu_inside_an_autograd_function_counts_for_nothing() -> None:
    """Where the pass is run under the mode, that sees the call inside, which no gradient goes through."""
    with rules.Rules("guided") as seen:
        _Own.apply(images(1).requires_grad_())
    assert seen.activations.relus == 0


@pytest.mark.parametrize("passes", [False, True])
def test_clamp_at_its_bound_stops_the_gradient(passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own derivative there is 1 in older versions of torch, a ReLU's is 0."""
    if not passes and rules.nodes._clamp_passes_its_bounds():
        pytest.skip("this torch's clamp passes its bounds")
    monkeypatch.setattr(rules.nodes, "_clamp_passes_its_bounds", lambda: passes)
    x = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)

    def run() -> torch.Tensor:
        return 3 * x.clamp(min=0)

    output = run()
    found = rules.guide(output)
    assert (found is None) == passes
    if found is None:
        with rules.Rules("guided"):
            output = run()
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.tolist() == [[0, 0, 3]]
