"""LibraGrad: the authors' rules written with `.detach()`, conservation, and what it is on other networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES, GapHead, images, seeded
from oracles import answers, ask, assert_unchanged, fingerprint, model_of, same
from toy_transformers import ACTIVATIONS, EPSILON, Mode, ToyViT
from visx import VisxError

KINDS: dict[str, dict[str, Any]] = {
    "fused": {}, "written out": {"fused": False}, "gated": {"gated": True, "activation": "silu"}, "rms": {"rms": True},
}  # fmt: skip
METHODS: dict[str, Mode] = {"libragrad": "libra", "attnlrp": "attnlrp"}


def toy(mode: Mode = "plain", **kind: Any) -> ToyViT:
    return seeded(partial(ToyViT, mode, **kind))  # type: ignore[return-value]


def input_times_gradient(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """(B, H, W) by plain autograd."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(net(leaf)[:, target].sum(), leaf)
    return (x * grad).sum(1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_plain_gradient_of_the_network_rewritten_by_hand(name: str, kind: str) -> None:
    x = images(2, 12)
    found = ask(name, toy(**KINDS[kind]), x, (3, 1), **EPSILON[name]).map
    for t, target in enumerate((3, 1)):
        assert same(found[:, t], input_times_gradient(toy(METHODS[name], **KINDS[kind]), x, target), 1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_the_rule_of_x_times_a_constant(activation: str) -> None:
    x = images(2, 12)
    found = ask("libragrad", toy(activation=activation), x, (2,)).map[:, 0]
    assert same(found, input_times_gradient(toy("libra", activation=activation), x, 2), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_biases_the_map_sums_to_the_score(kind: str) -> None:
    net, x = toy(bias=False, **KINDS[kind]), images(3, 12)
    found = ask("libragrad", net, x, (0, 4))
    with torch.no_grad():
        scores = net(x)[:, [0, 4]]
    assert same(found.map.sum((2, 3)), scores, 1e-10)
    assert found.extra(1, 0)["relevance_sum"] == pytest.approx(float(scores[1, 0]), rel=1e-10)


def test_with_biases_what_is_left_is_theirs() -> None:
    """The rewritten network is linear in the input and all its biases together, so input and biases times their gradients
    make up the score."""
    net, rewritten, x = toy(), toy("libra"), images(1, 12)
    constants = [p for name, p in rewritten.named_parameters() if name.endswith("bias") or name == "token"]
    score = rewritten(x)[0, 2]
    shares = sum(
        float((p * g).sum().detach()) for p, g in zip(constants, torch.autograd.grad(score, constants), strict=True)
    )
    total = float(ask("libragrad", net, x, (2,)).map.sum())
    assert abs(total - score.item()) > 0.01 and total + shares == pytest.approx(score.item(), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("gated", [True, False])
def test_fused_attention_changes_nothing(name: str, gated: bool) -> None:
    x = images(2, 12)
    assert same(
        ask(name, toy(gated=gated), x, **EPSILON[name]).map,
        ask(name, toy(gated=gated, fused=False), x, **EPSILON[name]).map,
        1e-11,
    )


@pytest.mark.parametrize("name", METHODS)
def test_on_relus_it_is_input_times_gradient(name: str) -> None:
    net, x = seeded(GapHead), images(2, 12)
    assert same(ask(name, net, x, (0, 3), **EPSILON[name]).map, ask("input_x_gradient", net, x, (0, 3)).map, 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_left_alone_and_a_backward_pass_after_it_is_plain(name: str) -> None:
    net, x = toy(), images(2, 12)
    expected, before = input_times_gradient(net, x, 1), fingerprint(net)
    ask(name, net, x, (1,))
    assert_unchanged(before, fingerprint(net))
    assert torch.equal(input_times_gradient(net, x, 1), expected)


class SqueezeExcite(nn.Module):
    """Convolution, norm, activation, and a gate over channels, which `detached` takes for a constant."""

    def __init__(self, norm: nn.Module, detached: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), norm
        self.squeeze, self.fc, self.detached = nn.Conv2d(8, 8, 1), nn.Linear(8, CLASSES), detached

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x * torch.sigmoid(x).detach() if self.detached else F.silu(x)
        gate = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.fc((x * (gate.detach() if self.detached else gate)).mean((2, 3)))


class ScaleDetached(nn.Module):
    """A normalisation over `groups` of channels whose scale is detached."""

    def __init__(self, groups: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.groups, self.weight, self.bias = groups, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        g = x.reshape(len(x), self.groups, -1)
        g = g - g.mean(2, keepdim=True)
        g = g / (g.square().mean(2, keepdim=True) + 1e-5).sqrt().detach()
        return g.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("groups", [2, 8, 0])
def test_group_and_instance_normalisation_and_gates_over_channels(name: str, groups: int) -> None:
    norm = nn.InstanceNorm2d(8, affine=True) if groups == 8 else nn.GroupNorm(groups or 1, 8)
    norm = norm.double() if groups else nn.BatchNorm2d(8).double().eval()
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.linspace(0.5, 1.5, 8))
    net, x = seeded(lambda: SqueezeExcite(norm)), images(2, 12)
    other = ScaleDetached(groups, norm.weight, norm.bias) if groups else norm
    slow = seeded(lambda: SqueezeExcite(other, detached=True))
    assert same(ask(name, net, x, (2,), **EPSILON[name]).map[:, 0], input_times_gradient(slow, x, 2), 1e-10)


class Ending(nn.Module):
    """A toy transformer whose output goes through `answer`."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.net, self.answer = ToyViT(), answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net(x))  # type: ignore[no-any-return]


def test_the_softmax_that_a_network_ends_with_keeps_its_gradient() -> None:
    """The relevance of log p, as the library explains what gives probabilities, is that of the scores log softmax."""
    x = images(2, 12)
    found = answers(model_of(seeded(lambda: Ending(lambda z: z.softmax(1)))), "libragrad", x, "2")
    wanted = answers(model_of(seeded(lambda: Ending(lambda z: z))), "libragrad", x, "2", score="logprob")
    for a, b in zip(found, wanted, strict=True):
        assert same(a[0].map, b[0].map, 1e-5)  # type: ignore[index]


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda z: z.sin() * 3 + 1, "sin"),
        (lambda z: F.softplus(z) - z, "softplus"),
        (lambda z: z.exp() + z, "exp"),
        (lambda z: torch.stack([z.sigmoid() + z, z], 2).sum(2).abs(), "sigmoid"),
        (lambda z: _Own.apply(z) * 1, "_own"),
        (lambda z: (z - 1).norm(dim=1, keepdim=True) + z, "norm"),
    ],
)
def test_an_operation_without_a_rule_is_named(name: str, answer: Any, named: str) -> None:
    model = model_of(seeded(lambda: Ending(answer)))
    with pytest.raises(VisxError, match=f"no relevance rule: .*{named}") as refused:
        answers(model, name, images(1, 12))
    assert refused.value.code == 4


def test_an_attention_over_constant_values_is_refused() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.values = nn.Linear(3, CLASSES), nn.Parameter(torch.randn(CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            z = self.fc(x.mean((2, 3)))
            weights = torch.softmax(z[:, :, None] * z[:, None], 2)
            return F.scaled_dot_product_attention(z[:, :, None], z[:, :, None], self.values[None, :, None])[:, :, 0] + (
                (weights @ self.values) if self.written else 0
            )

    for written, named in ((False, "(attention over constant values|softmax)"), (True, "softmax")):
        net = seeded(Gated)
        net.written = written
        with pytest.raises(VisxError, match=f"no relevance rule: .*{named}"):
            ask("libragrad", net, images(1, 12))
